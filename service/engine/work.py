"""One request inside the engine's room: its call, its deadline, and the prompts it has running."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from service.errors import TimedOut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from service.engine.port import Call, EngineAdapter, Usage

T = TypeVar("T")


class Work:
    """What `generate` needs to know of the request it is called for; handlers don't hand it down.

    Closing it ends every prompt that still runs, so that an adapter is let go only when the engine has been told.
    """

    def __init__(self, call: Call, timeout: float | None) -> None:
        """`timeout` is in seconds, from now; None is any time."""
        self.call = call
        self._timeout = timeout
        self._ends = asyncio.get_running_loop().time() + timeout if timeout else None
        self._running: dict[AsyncGenerator[Any, None], asyncio.Event] = {}

    @property
    def adapter(self) -> EngineAdapter | None:
        """The leased version; None is the base."""
        return self.call.adapter

    @property
    def lane(self) -> str:
        """Whose turn it is at the gate."""
        return self.call.adapter.name if self.call.adapter else ""

    @property
    def usage(self) -> Usage:
        """What the request takes."""
        return self.call.usage

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Around one wait. Raises TimedOut when the request's time is up."""
        try:
            async with asyncio.timeout_at(self._ends):
                yield
        except TimeoutError:
            raise self._timed_out() from None

    @contextmanager
    def alarm(self, ring: Callable[[Exception], None]) -> Iterator[None]:
        """Around many waits: one timer for all of them. Calls `ring` with TimedOut when the request's time is up."""
        if self._ends is None:
            yield
            return
        timer = asyncio.get_running_loop().call_at(self._ends, lambda: ring(self._timed_out()))
        try:
            yield
        finally:
            timer.cancel()

    def add(self, outputs: AsyncGenerator[T, None], ended: asyncio.Event) -> AsyncGenerator[T, None]:
        """Keep track of one prompt's outputs, which set `ended` when they are done."""
        self._running[outputs] = ended
        return outputs

    async def close(self) -> None:
        """End what still runs; returns when the engine has been told."""
        with anyio.CancelScope(shield=True):
            for outputs, ended in self._running.items():
                # Where a task of vLLM's is in the middle of it, that task has been cancelled and ends it.
                with suppress(RuntimeError):
                    await outputs.aclose()
                    continue
                await ended.wait()
        self._running.clear()

    def _timed_out(self) -> TimedOut:
        return TimedOut(self._timeout or 0.0)


current: ContextVar[Work] = ContextVar("loradock_work")
"""The request a handler is working on. Each HTTP request runs in a task, and so in a context, of its own."""
