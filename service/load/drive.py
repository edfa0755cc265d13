"""Clients that ask one question after the other, each the next as soon as its last has been answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.load.answer import Answer, read
from service.load.exchange import exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.load.exchange import Exchange
    from service.load.question import Question
    from service.load.server import Server

TIMEOUT = 600.0
"""Seconds after which an answer is given up."""


@dataclass(frozen=True, slots=True)
class Run:
    """One round on one server."""

    answers: tuple[Answer, ...]
    seconds: float
    """From the first question to the end of the last answer."""


async def drive(
    server: Server,
    questions: Iterable[Question],
    clients: int,
    *,
    seconds: float | None = None,
    answered: Callable[[], None] = lambda: None,
) -> Run:
    """Ask all questions, at most `clients` at a time; none is begun after `seconds`. `answered` hears of each end."""
    waiting = iter(questions)
    exchanges: list[Exchange] = []
    began = time.perf_counter()
    until = None if seconds is None else began + seconds

    async def client() -> None:
        for question in waiting:
            exchanges.append(await exchange(server, question, TIMEOUT))
            answered()
            if until is not None and time.perf_counter() >= until:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    ended = max((exchange.ended for exchange in exchanges), default=began)
    return Run(tuple(read(exchange) for exchange in exchanges), ended - began)
