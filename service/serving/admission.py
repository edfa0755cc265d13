"""The gate in front of the engine: prompts wait here, bounded and fair, and leave when their client does."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from service.errors import QueueFull
from service.serving.budget import Budget, Limits, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable

RATE_MEMORY = 30.0
"""Seconds over which the reading speed behind `Retry-After` is averaged."""

LONGEST_RETRY = 120


class Observer(Protocol):
    """Who counts what happens at the gate; `telemetry.Telemetry` does."""

    def budget(self, waiting: int, in_flight: int) -> None:
        """Prompt tokens that wait, and that have entered and not yet spoken."""

    def split(self) -> None:
        """A request's prompts could not all enter together."""


class Pass:
    """The right to be in the engine, held from entering to the end."""

    def __init__(self, gate: Gate, ticket: Ticket) -> None:
        self._gate = gate
        self._ticket = ticket

    def spoke(self, tokens: int) -> None:
        """The engine has generated so many more tokens for it."""
        self._gate.spoke(self._ticket, tokens)


class Gate:
    """Lets prompts into the engine as `budget` decides. Everything runs on the event loop and nothing blocks it."""

    def __init__(
        self, limits: Limits, most_waiting: int, observer: Observer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`most_waiting`: prompt tokens that may wait before further requests are turned away."""
        self._budget = Budget(limits)
        self._most_waiting = most_waiting
        self._observer = observer
        self._clock = clock
        self._ids = itertools.count(1)
        self._doors: dict[int, asyncio.Future[None]] = {}
        self._split: set[Hashable] = set()
        self._entered_of: dict[Hashable, int] = {}
        self._rate = 0.0
        self._rated = clock()
        self._timer: asyncio.TimerHandle | None = None

    def size(self, *, sequences: int, slots: int) -> None:
        """Learn what the engine can hold, once it has started."""
        limits = self._budget.limits
        self._budget.limits = Limits(limits.tokens, sequences, slots, limits.patience)

    def check(self) -> None:
        """Raise QueueFull when no more requests are taken; called before an answer is begun."""
        if self._budget.tokens_waiting >= self._most_waiting:
            seconds = self._budget.tokens_waiting / self._rate if self._rate else 1.0
            raise QueueFull(max(1, min(LONGEST_RETRY, math.ceil(seconds))))

    @asynccontextmanager
    async def admit(self, lane: str, tokens: int, sequences: int, request: Hashable) -> AsyncIterator[Pass]:
        """Wait until a prompt may enter, hold its place, and give it back at the end, however it ends.

        lane: the adapter's engine name, "" for the base. tokens: of the prompt, times the answers asked for.
        request: what this prompt has in common with its siblings.
        """
        ticket = Ticket(next(self._ids), lane, tokens, sequences, self._clock())
        self._budget.join(ticket)
        try:
            await self._wait(ticket, request)
            self._entered_of[request] = self._entered_of.get(request, 0) + 1
            try:
                yield Pass(self, ticket)
            finally:
                self._entered_of[request] -= 1
                if not self._entered_of[request]:
                    del self._entered_of[request]
                    self._split.discard(request)
        finally:
            self._budget.leave(ticket)
            self._turn()

    def spoke(self, ticket: Ticket, tokens: int) -> None:
        """See Pass."""
        if freed := self._budget.spoke(ticket, tokens):
            self._read(freed)
            self._turn()

    async def _wait(self, ticket: Ticket, request: Hashable) -> None:
        door: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._doors[ticket.id] = door
        self._turn()
        try:
            if not door.done() and self._entered_of.get(request) and request not in self._split:
                self._split.add(request)
                self._observer.split()
            await door
        finally:
            del self._doors[ticket.id]

    def _turn(self) -> None:
        """Open the door for whoever may enter now."""
        for ticket in self._budget.admit(self._clock()):
            if not self._doors[ticket.id].done():  # its client may have left this very moment
                self._doors[ticket.id].set_result(None)
        self._observer.budget(self._budget.tokens_waiting, self._budget.tokens_in_flight)
        self._look_again()

    def _look_again(self) -> None:
        # Ageing changes who may enter although nobody comes or goes.
        if self._timer is None and self._budget.tokens_waiting:
            self._timer = asyncio.get_running_loop().call_later(self._budget.limits.patience / 2, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._turn()

    def _read(self, tokens: int) -> None:
        now = self._clock()
        passed = max(now - self._rated, 1e-3)
        weight = math.exp(-passed / RATE_MEMORY)
        self._rate = self._rate * weight + tokens / passed * (1 - weight)
        self._rated = now
