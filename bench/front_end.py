"""What the API process takes of a core for each streamed token, and how long a stream stands still at the longest.

    python bench/front_end.py --base .base/demo [--servers loradock,vllm-same] [--minutes 10]

Sixteen streams at a time, completions and chats, on servers that take turns as in side_by_side. Counted is the CPU time
of the API process alone, all its threads, divided by the tokens streamed; a request's own cost (parsing, tokenising,
counting) is in it. With --minutes also the longest gap between two tokens of one stream, while sixteen clients ask
without a pause; the client's collector is off, since what it takes would look like the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from servers import KINDS, SAME, Running, running

from service.load.drive import drive
from service.load.figures import Figures
from service.load.ratio import Ratio, spread
from service.load.server import Server
from service.load.workload import Workload

STREAMS = 16
TOKENS = 128
SIZES = ("--max-loras", "4", "--max-cpu-loras", "8", "--max-lora-rank", "16")
COMPLETIONS = Workload(("base",), STREAMS, STREAMS, max_tokens=TOKENS)
CHATS = Workload(("base",), STREAMS, STREAMS, max_tokens=TOKENS, chat=True)
WORKLOADS = {"completions": COMPLETIONS, "chats": CHATS}


@dataclass(frozen=True)
class Measured:
    """One workload on one server, once."""

    cpu_micros: float
    figures: Figures


def measure(server: Running, workload: Workload, seed: str) -> Measured:
    """Sixteen streams that begin together."""
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    run = asyncio.run(drive(Server.at(server.url), workload.questions(seed), workload.clients))
    taken = sum(process.cpu_times()[:2]) - before
    figures = Figures.of(run)
    if figures.failures:
        raise RuntimeError(next(answer.failure for answer in run.answers if answer.failure))
    return Measured(taken / figures.tokens * 1e6, figures)


def longest_pause(server: Running, seconds: float) -> float:
    """Of streams by sixteen clients that ask one after the other."""
    questions = (question for number in range(10_000) for question in COMPLETIONS.questions(f"pause {number}"))
    figures = Figures.of(asyncio.run(drive(Server.at(server.url), questions, STREAMS, seconds=seconds)))
    if figures.failures or figures.itl is None:
        raise RuntimeError(f"{figures.failures} answers failed")
    return figures.itl.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--servers", default="loradock,vllm-same", help="of " + ", ".join(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0, help="to look for the longest pause, on each server")
    options = parser.parse_args()
    kinds = options.servers.split(",")
    measured: dict[tuple[str, str], list[Measured]] = {}
    pauses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        room = Path(temporary)
        (room / "adapters").mkdir()
        up: dict[str, Running] = {}
        for kind in kinds:
            server = running(kind, options.base, room / "adapters", (), room, *SAME, *SIZES)
            up[kind] = stack.enter_context(server)
            up[kind].pause()
        gc.freeze()
        gc.disable()
        for number in range(options.rounds + 1):
            for kind, server in up.items():
                server.resume()
                for name, workload in WORKLOADS.items():
                    found = measure(server, workload, f"{number} {name}")
                    if number:  # the first round isn't counted
                        measured.setdefault((name, kind), []).append(found)
                server.pause()
        for kind, server in up.items():
            if options.minutes:
                server.resume()
                pauses[kind] = longest_pause(server, options.minutes * 60)
                server.pause()
    _tell(measured, kinds[0], pauses)


def _tell(measured: dict[tuple[str, str], list[Measured]], ours: str, pauses: dict[str, float]) -> None:
    print(f"{STREAMS} streams of {TOKENS} tokens, medians over rounds")
    print("| | | CPU µs a token | loradock's by its | tokens/s | first token s |\n" + "| --- " * 6 + "|")
    for (name, kind), rounds in measured.items():
        cpu = [one.cpu_micros for one in rounds]
        pairs = zip((one.cpu_micros for one in measured[name, ours]), cpu, strict=True)
        rate = statistics.median(one.figures.tokens_per_second for one in rounds)
        first = statistics.median(one.figures.ttft.p50 for one in rounds if one.figures.ttft)
        print(f"| {name} | {kind} | {spread(cpu)} | {Ratio.of(pairs)} | {rate:.0f} | {first:.3f} |")
    for kind, pause in pauses.items():
        print(f"{kind}: the longest pause of a stream was {pause:.3f} s")


if __name__ == "__main__":
    main()
