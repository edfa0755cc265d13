"""A swap nobody notices: versions change under load, and no request fails, mixes, or gets what was replaced before."""

from __future__ import annotations

import asyncio

import pytest
from builder import engine_with

from service.engine.echo import COMPLETIONS
from service.engine.port import Call

pytestmark = pytest.mark.anyio

CLIENTS = 8
SWAPS = 50


async def ask(house, prompt):
    """One request as `serving` runs it. Returns the version that answered."""
    lease = house.catalog.lease("pirate")
    try:
        await house.residency.hold(lease.adapter)
        try:
            body = COMPLETIONS.request_type(prompt=prompt, max_tokens=100)
            reply = await house.engine.run(COMPLETIONS.name, Call(body, lease.adapter))
        finally:
            house.residency.release(lease.adapter)
    finally:
        lease.release()
    speaker, _, words = reply.body["choices"][0]["text"].partition(": ")
    assert words == prompt, "another request's words"
    assert speaker == lease.adapter.name, "another version's voice"
    return int(speaker.removeprefix("pirate@"))


@pytest.mark.parametrize("keep", [1, 3])
async def test_fifty_swaps_under_eight_clients(builder, keep):
    active, answers, stop = [0], [0], False

    async def client(number):
        while not stop:
            since = active[0]
            version = await ask(house, f"client {number} " + "word " * (number * 3 + 1) + "end")
            assert version >= since, "answered by a version that was replaced before the request"
            answers[0] += 1
            await asyncio.sleep(0.001)  # what a client takes; without it eight of them leave the loop to nobody else

    async with builder.open(engine=engine_with(max_loras=2, max_cpu_loras=4), keep_versions=keep) as house:
        active[0] = (await house.catalog.publish("pirate", builder.adapter(0))).record["active"]
        clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
        for swap in range(1, SWAPS + 1):
            # A, B, A, B …: content that comes back is another version of another name.
            active[0] = (await house.catalog.publish("pirate", builder.adapter(swap % 2))).record["active"]
        stop = True
        await asyncio.gather(*clients)
        assert active[0] == SWAPS + 1
        assert answers[0] > SWAPS
        assert house.catalog.record("pirate")["in_flight"] == 0
    names = [name for event, name in house.engine.events if event == "load"]
    assert len(names) >= SWAPS + 1


async def test_a_rollback_under_load_reaches_every_request_that_comes_after_it(builder):
    async with builder.open(engine=engine_with(max_loras=2, max_cpu_loras=3)) as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
        for _ in range(20):
            running = [asyncio.create_task(ask(house, f"request {number} end")) for number in range(CLIENTS)]
            await asyncio.sleep(0)
            expected = (await house.catalog.rollback("pirate"))["active"]
            assert await ask(house, "after") == expected
            assert set(await asyncio.gather(*running)) <= {1, 2}
