"""Work that outlives whoever asked for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def to_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; a cancellation is passed on only when it has ended, so that it never runs on unseen."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        task.cancelled() or task.exception()
        raise cancelled
    return task.result()


class Tasks:
    """Tasks that belong to a room rather than to a request: kept until they end, and their failures logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Begin `work`; nobody has to await the task."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def carry_through(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Await `work`, which goes on to its end also when the one who awaits it leaves."""
        return await asyncio.shield(self.spawn(work, name))

    async def finish(self, seconds: float) -> None:
        """Return when all have ended; cancel what has not after so many seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel all and return when they have ended."""
        for task in self._running:
            task.cancel()
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.debug("task_failed", task=task.get_name(), error=repr(error))
