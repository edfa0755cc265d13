"""A request inside the engine's room: one timer, and an end that ends its prompts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest

from service.engine.port import Call
from service.engine.work import Work
from service.errors import TimedOut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


def work(timeout: float | None = None) -> Work:
    return Work(Call(None, None), timeout)


async def test_the_alarm_rings_when_the_requests_time_is_up():
    rung: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    with anyio.fail_after(5), work(0.01).alarm(rung.set_result):
        error = await rung
    assert isinstance(error, TimedOut)
    assert "0.01 s" in error.message


@pytest.mark.parametrize("timeout", [None, 0.01])
async def test_it_is_silent_for_who_has_all_the_time_or_has_left(timeout):
    rung: list[Exception] = []
    with work(timeout).alarm(rung.append):
        pass
    await asyncio.sleep(0.02)
    assert rung == []


async def test_a_wait_ends_with_the_requests_time():
    with pytest.raises(TimedOut):
        async with work(0.01).deadline():
            await asyncio.sleep(60)


async def test_closing_ends_what_nobody_reads_any_more():
    request, ended = work(), asyncio.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            ended.set()

    outputs = request.add(endless(), ended)
    await anext(outputs)
    await request.close()
    assert ended.is_set()


async def test_closing_waits_for_what_another_task_is_about_to_end():
    request, ended, told = work(), asyncio.Event(), asyncio.Event()

    async def waiting() -> AsyncGenerator[int, None]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            await told.wait()
            ended.set()

    reader = asyncio.ensure_future(anext(request.add(waiting(), ended)))
    await asyncio.sleep(0)
    reader.cancel()
    closing = asyncio.create_task(request.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    told.set()
    with anyio.fail_after(5):
        await closing
    assert ended.is_set()
