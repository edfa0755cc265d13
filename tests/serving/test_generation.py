"""One request's life: whatever it ends with, everything it held is given back, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from service.engine.echo import EchoCompletion
from service.engine.port import EngineAdapter, Reply
from service.errors import EngineDead, ModelNotFound, QueueFull, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from house import House

pytestmark = pytest.mark.anyio

WHOLE = EchoCompletion(prompt="one two three")
STREAM = EchoCompletion(prompt="one two three", stream=True)


async def page(house: House) -> list[str]:
    return (await house.telemetry.page(house.engine.metrics)).decode().splitlines()


async def counted(house: House, status: int) -> bool:
    return f'loradock_requests_total{{adapter="pirate",code="{status}"}} 1.0' in await page(house)


async def all_is_given_back(house: House) -> None:
    assert house.catalog.record("pirate")["in_flight"] == 0
    assert 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}' in " ".join(
        await page(house)
    )
    with anyio.fail_after(2):
        await house.generation.residency.retire("pirate@1")


async def test_a_whole_answer(pirate: House):
    async with pirate.generation.exchange("pirate") as exchange:
        reply = await exchange.answer("completions", WHOLE)
        assert pirate.catalog.record("pirate")["in_flight"] == 1
        assert exchange.label.startswith("pirate@1 sha256:")
    assert reply.body["choices"][0]["text"] == "pirate@1: one two three"
    assert await counted(pirate, 200)
    assert 'loradock_tokens_total{adapter="pirate",kind="prompt"} 3.0' in await page(pirate)
    await all_is_given_back(pirate)


async def test_a_stream_is_held_until_it_has_been_read(pirate: House):
    async with pirate.generation.exchange("pirate") as exchange:
        reply = await exchange.answer("completions", STREAM)
        async for _ in reply.stream:
            assert pirate.catalog.record("pirate")["in_flight"] == 1
    assert ("abort", "pirate@1") not in pirate.engine.events
    assert await counted(pirate, 200)
    await all_is_given_back(pirate)


async def test_a_stream_that_is_left_unread_is_closed(pirate: House):
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: x\n\n"
        finally:
            # As the real engine does, it waits for its abort to be sent.
            await asyncio.sleep(0)
            closed.set()

    async def run(operation: str, call: Any) -> Reply:
        return Reply(stream=endless())

    pirate.engine.run = run
    async with pirate.generation.exchange("pirate") as exchange:
        reply = await exchange.answer("completions", STREAM)
        await anext(reply.stream)
    assert closed.is_set()
    await all_is_given_back(pirate)


async def test_a_cancelled_stream_is_closed_although_its_scope_cancels_every_await(pirate: House):
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: x\n\n"
        finally:
            await asyncio.sleep(0)
            closed.set()

    async def run(operation: str, call: Any) -> Reply:
        return Reply(stream=endless())

    pirate.engine.run = run
    with anyio.CancelScope() as scope:
        async with pirate.generation.exchange("pirate") as exchange:
            reply = await exchange.answer("completions", STREAM)
            await anext(reply.stream)
            scope.cancel()
            await asyncio.sleep(0)
    assert closed.is_set()
    assert await counted(pirate, 499)
    await all_is_given_back(pirate)


@pytest.mark.parametrize(("error", "status"), [(QueueFull(1), 429), (EngineDead(), 503), (ValueError("x"), 500)])
async def test_a_failure_is_counted_by_its_status(pirate: House, error, status):
    async def run(operation: str, call: Any) -> Reply:
        raise error

    pirate.engine.run = run
    with pytest.raises(type(error)):
        async with pirate.generation.exchange("pirate") as exchange:
            await exchange.answer("completions", WHOLE)
    assert await counted(pirate, status)
    await all_is_given_back(pirate)


async def test_an_unknown_model_takes_nothing(pirate: House):
    with pytest.raises(ModelNotFound):
        async with pirate.generation.exchange("nobody"):
            pytest.fail("nobody answers to that name")
    await all_is_given_back(pirate)


async def test_a_proven_adapter_the_engine_refuses_is_unavailable_and_can_come_back(pirate: House):
    await pirate.generation.residency.retire("pirate@1")
    pirate.engine.refused.add("pirate@1")
    with pytest.raises(Unavailable, match="'pirate'"):
        async with pirate.generation.exchange("pirate") as exchange:
            await exchange.answer("completions", WHOLE)
    assert await counted(pirate, 503)
    pirate.engine.refused.clear()
    async with pirate.generation.exchange("pirate") as exchange:
        await exchange.answer("completions", WHOLE)
    await all_is_given_back(pirate)


async def test_the_time_to_the_first_token_begins_with_the_requests_arrival(pirate: House):
    await pirate.generation.residency.retire("pirate@1")
    load = pirate.engine.load

    async def slow_load(adapter: EngineAdapter) -> None:
        await asyncio.sleep(0.05)
        await load(adapter)

    pirate.engine.load = slow_load
    async with pirate.generation.exchange("pirate") as exchange:
        await exchange.answer("completions", WHOLE)
    (line,) = [line for line in await page(pirate) if line.startswith("loradock_time_to_first_token_seconds_sum")]
    assert float(line.rpartition(" ")[2]) >= 0.05


async def test_the_base_needs_no_seat(pirate: House):
    async with pirate.generation.exchange(None) as exchange:
        reply = await exchange.answer("completions", WHOLE)
        assert exchange.label is None
    assert reply.body["choices"][0]["text"] == "base: one two three"
    assert 'loradock_requests_total{adapter="tiny-base",code="200"} 1.0' in await page(pirate)
