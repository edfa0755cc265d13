"""One request and what came back, stamped as it arrived and not looked at: reading it can wait until the round is over.

The generator often shares its cores with the server it measures. So while a round runs, all that is done for an arrival
is to note when it came; HTTP, events and JSON are taken apart afterwards (`answer.py`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

if TYPE_CHECKING:
    from service.load.question import Question
    from service.load.server import Server

CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A finished request."""

    question: Question
    connection: h11.Connection
    """Has sent the request, and has the answer still to read."""
    began: float
    """When the request went out; the connection stood already."""
    ended: float
    arrivals: tuple[tuple[float, bytes], ...]
    broken: str | None = None
    """What went wrong below HTTP."""


class _Wire(asyncio.Protocol):
    """Notes what arrives until the server hangs up, as it has been asked to."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.done():
            return
        if exc:
            self.closed.set_exception(exc)
        else:
            self.closed.set_result(None)


async def exchange(server: Server, question: Question, timeout: float) -> Exchange:  # noqa: ASYNC109 (a request's limit)
    """Ask, on a connection of its own, and wait for the end. What goes wrong is part of what is returned."""
    connection = h11.Connection(h11.CLIENT)
    request = _request(connection, server, question)
    wire = _Wire()
    broken: str | None = None
    began = time.perf_counter()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: wire, server.host, server.port, ssl=server.secure or None
            )
        began = time.perf_counter()
        try:
            transport.write(request)
            async with asyncio.timeout(timeout):
                await wire.closed
        finally:
            transport.abort()
    except TimeoutError:
        broken = "it took too long"
    except OSError as error:
        broken = f"the connection failed: {error}"
    ended = wire.arrivals[-1][0] if wire.arrivals else time.perf_counter()
    return Exchange(question, connection, began, ended, tuple(wire.arrivals), broken)


def _request(connection: h11.Connection, server: Server, question: Question) -> bytes:
    body = question.body()
    headers = [
        ("Host", server.authority),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    head = h11.Request(method="POST", target=server.prefix + question.path, headers=headers)
    return b"".join(connection.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage()))
