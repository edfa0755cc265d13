"""What the API process takes of a core for each streamed token, beside vLLM's own server.

    python bench/front_end.py --base .base/demo [--against-stock] [--minutes 10]

Sixteen streams at a time, completions and chats in turn, against both servers in turn; whichever isn't asked is
stopped by a signal, so that it takes nothing. Counted is the CPU time of the API process with all its threads, as /proc
has it, divided by the tokens streamed; a request's own cost (parsing, tokenising, counting) is in it. With --minutes
also the longest time between two pieces of one stream, while sixteen clients ask without a pause.

The client reads bare sockets and its collector is off: what it takes would be waited for by the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from servers import loradock_process, stock_process

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMS = 16
PROMPT = "Tell me a story about the sea."
TICKS = os.sysconf("SC_CLK_TCK")
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two."""

    name: str
    url: str
    pid: int

    def cpu(self) -> float:
        """Seconds its API process has taken, all threads; its engine is another process."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for a while."""
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round of streams took. Times in seconds."""

    cpu_micros: float
    """CPU microseconds of the API process a token."""
    tokens_a_second: float
    first_token: float
    """Median over the streams."""
    longest_pause: float


class Listener(asyncio.Protocol):
    """One stream: when its pieces came, and the last few bytes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.arrivals: list[float] = []
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.arrivals.append(time.perf_counter())
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if b"data: " in data:
            self.arrivals.append(time.perf_counter())
        self._tail = self._tail[-256:] + data
        if self._tail.endswith(b"0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if b'"finish_reason":"length"' in self._tail and b"data: [DONE]" in self._tail:
            self.over.set_result(None)
        else:
            self.over.set_exception(error or RuntimeError(self._tail.decode(errors="replace")))

    @property
    def pauses(self) -> Iterator[float]:
        """Between two pieces of the answer."""
        return (later - earlier for earlier, later in zip(self.arrivals[1:], self.arrivals[2:], strict=False))


async def stream(url: str, path: str, number: int, tokens: int) -> Listener:
    """One answer of so many tokens, read to its end."""
    host = urlsplit(url)
    body = json.dumps(_body(path, f"{number}: {PROMPT}", tokens)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop = asyncio.get_running_loop()
    _, listener = await loop.create_connection(lambda: Listener(request), host.hostname, host.port)
    await listener.over
    return listener


def _body(path: str, prompt: str, tokens: int) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    return {"model": "base", **asked, "max_tokens": tokens, "ignore_eos": True, "stream": True}


async def together(server: Server, path: str, tokens: int) -> Figures:
    """Sixteen streams that begin together."""
    cpu, began = server.cpu(), time.perf_counter()
    heard = await asyncio.gather(*(stream(server.url, path, number, tokens) for number in range(STREAMS)))
    seconds = time.perf_counter() - began
    return Figures(
        cpu_micros=(server.cpu() - cpu) / (STREAMS * tokens) * 1e6,
        tokens_a_second=STREAMS * tokens / seconds,
        first_token=statistics.median(listener.arrivals[1] - listener.arrivals[0] for listener in heard),
        longest_pause=max(max(listener.pauses) for listener in heard),
    )


async def longest_pause(server: Server, path: str, tokens: int, seconds: float) -> float:
    """While sixteen clients ask for stream after stream."""
    ends = time.perf_counter() + seconds

    async def client(number: int) -> float:
        longest = 0.0
        while time.perf_counter() < ends:
            longest = max(longest, *(await stream(server.url, path, number, tokens)).pauses)
        return longest

    return max(await asyncio.gather(*(client(number) for number in range(STREAMS))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=128, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0, help="to look for the longest pause, of each server")
    parser.add_argument("--against-stock", action="store_true")
    options = parser.parse_args()
    paths = ("/v1/completions", "/v1/chat/completions")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        room = Path(temporary)
        (room / "adapters").mkdir()
        sizes = ("--max-loras", "4", "--max-lora-rank", "64")
        servers = []

        def add(name: str, url: str, pid: int) -> None:
            servers.append(Server(name, url, pid))
            stack.callback(os.killpg, pid, signal.SIGCONT)
            os.killpg(pid, signal.SIGSTOP)

        url, process = stack.enter_context(loradock_process(options.base, room / "adapters", room, *sizes))
        add("loradock", url, process.pid)
        if options.against_stock:
            url, process = stack.enter_context(stock_process(options.base, room / "adapters", [], room, *sizes))
            add("vLLM's server", url, process.pid)
        gc.freeze()
        gc.disable()
        measured: dict[tuple[str, str], list[Figures]] = {}
        for number in range(options.rounds + 1):
            for server in servers:
                with server.awake():
                    for path in paths:
                        figures = asyncio.run(together(server, path, options.tokens))
                        if number:  # the first round isn't counted
                            measured.setdefault((server.name, path), []).append(figures)
        pauses = {}
        for server in servers if options.minutes else []:
            with server.awake():
                pauses[server.name] = asyncio.run(longest_pause(server, paths[0], options.tokens, options.minutes * 60))
    _tell(measured, pauses)


def _tell(measured: dict[tuple[str, str], list[Figures]], pauses: dict[str, float]) -> None:
    print(f"{STREAMS} streams, medians over rounds")
    print("| | | CPU µs a token | tokens/s | first token s | longest pause s |\n| --- | --- | --- | --- | --- | --- |")
    for (who, path), rounds in measured.items():
        columns = [
            statistics.median(getattr(figures, column) for figures in rounds) for column in Figures.__dataclass_fields__
        ]
        spread = ", ".join(f"{figures.cpu_micros:.0f}" for figures in rounds)
        print(
            f"| {who} | {path} | {columns[0]:.0f} ({spread}) | {columns[1]:.0f} | {columns[2]:.3f} | {columns[3]:.3f} |"
        )
    for who, pause in pauses.items():
        print(f"{who}: longest pause of a stream {pause:.3f} s")


if __name__ == "__main__":
    main()
