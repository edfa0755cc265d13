"""The gate: bounded, ordered, and free of those who left."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.errors import QueueFull
from service.serving.admission import Gate
from service.serving.budget import Limits

pytestmark = pytest.mark.anyio


class Ledger:
    """Notes what the gate tells."""

    def __init__(self) -> None:
        self.splits = 0
        self.most_in_flight = 0

    def budget(self, waiting: int, in_flight: int) -> None:
        self.most_in_flight = max(self.most_in_flight, in_flight)

    def split(self) -> None:
        self.splits += 1


def gate(ledger: Ledger, tokens: int = 100, most_waiting: int = 1000) -> Gate:
    return Gate(Limits(tokens, 64, 4, 5.0), most_waiting, ledger)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_request_above_the_budget_enters_in_parts() -> None:
    """All its prompts are answered, in order, never more at once than the budget; it is one split."""
    ledger, order = Ledger(), []
    doors = gate(ledger)

    async def prompt(number: int) -> None:
        async with doors.admit("a@1", 40, 1, "request") as admitted:
            order.append(number)
            await settle()
            admitted.spoke(1)
            await settle()

    await asyncio.gather(*(prompt(number) for number in range(7)))
    assert order == list(range(7))
    assert ledger.most_in_flight == 80
    assert ledger.splits == 1


async def test_the_queue_is_bounded() -> None:
    """Beyond the bound requests are turned away, with a time to come back after."""
    doors = gate(Ledger(), most_waiting=50)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(doors.admit("", 90, 1, 1))
        doors.check()
        waiting = asyncio.create_task(stack.enter_async_context(doors.admit("", 60, 1, 2)))
        await settle()
        with pytest.raises(QueueFull) as caught:
            doors.check()
        assert caught.value.retry_after >= 1
        waiting.cancel()
        await settle()
        doors.check()


async def test_who_leaves_makes_room() -> None:
    """A cancelled prompt frees what it held, waiting or entered; the next one enters."""
    doors = gate(Ledger())
    entered = asyncio.Event()

    async def hold(request: int, tell: asyncio.Event | None = None) -> None:
        async with doors.admit("a@1", 90, 1, request):
            if tell:
                tell.set()
            await asyncio.Event().wait()

    first, second = (asyncio.create_task(hold(number)) for number in (1, 2))
    third = asyncio.create_task(hold(3, entered))
    await settle()
    second.cancel()
    await settle()
    assert not entered.is_set()
    first.cancel()
    await asyncio.wait_for(entered.wait(), 1)
    third.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)


async def test_leaving_at_the_moment_of_entering() -> None:
    """A client that leaves just as its door opens neither breaks the gate nor keeps its place."""
    doors = gate(Ledger())

    async def hold(request: int) -> None:
        async with doors.admit("a@1", 90, 1, request):
            await asyncio.Event().wait()

    first, second = (asyncio.create_task(hold(number)) for number in (1, 2))
    await settle()
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    async with doors.admit("a@1", 100, 1, 3):
        pass
