"""Work that outlives whoever asked for it."""

from __future__ import annotations

import asyncio

import pytest

from service.registry.tasks import Tasks, to_end

pytestmark = pytest.mark.anyio


class Work:
    """Something that goes on until it is let go."""

    def __init__(self):
        self.begun, self.proceed, self.ended = asyncio.Event(), asyncio.Event(), False

    async def __call__(self):
        self.begun.set()
        await self.proceed.wait()
        self.ended = True
        return 7


async def test_a_cancellation_waits_for_the_end():
    work = Work()
    caller = asyncio.create_task(to_end(work()))
    await work.begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    work.proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_what_is_not_cancelled_has_its_result_or_its_error():
    async def fail():
        raise ZeroDivisionError

    work = Work()
    work.proceed.set()
    assert await to_end(work()) == 7
    with pytest.raises(ZeroDivisionError):
        await to_end(fail())


async def test_what_is_carried_through_ends_without_its_caller():
    tasks, work = Tasks(), Work()
    caller = asyncio.create_task(tasks.carry_through(work(), "work"))
    await work.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    work.proceed.set()
    await tasks.finish(10)
    assert work.ended


async def test_what_does_not_finish_in_time_is_cancelled():
    tasks, work = Tasks(), Work()
    task = tasks.spawn(work(), "work")
    await work.begun.wait()
    await tasks.finish(0.01)
    assert task.cancelled()
    assert not work.ended
