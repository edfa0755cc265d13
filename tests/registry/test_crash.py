"""The process dies between any two writes; the next one finds the old state or the new one, whole."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from builder import Builder, House

pytestmark = pytest.mark.anyio


class Crash(BaseException):
    """Not an Exception: no handler of ours may outlive it, as none outlives a kill."""


class Clockwork:
    """Lets so many writes pass and then none any more: a dead process doesn't tidy up."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.passed: list[str] = []

    @property
    def stopped(self) -> bool:
        return self.left is not None and len(self.passed) >= self.left

    def __call__(self, step: str) -> None:
        if self.stopped:
            raise Crash(step)
        self.passed.append(step)


async def publish_first(house: House, builder: Builder) -> None:
    await house.catalog.publish("pirate", builder.adapter(1))


async def publish_another_name(house: House, builder: Builder) -> None:
    await house.catalog.publish("Cow", builder.adapter(9))


async def swap(house: House, builder: Builder) -> None:
    await house.catalog.publish("pirate", builder.adapter(3), offered_by="/adapters/pirate")


async def rollback(house: House, builder: Builder) -> None:
    await house.catalog.rollback("pirate")


async def remove(house: House, builder: Builder) -> None:
    await house.catalog.remove("pirate")


async def remove_version(house: House, builder: Builder) -> None:
    await house.catalog.remove_version("pirate", 1)


async def pin(house: House, builder: Builder) -> None:
    await house.catalog.pin("pirate")


async def refuse(house: House, builder: Builder) -> None:
    with pytest.raises(Rejected):
        await house.catalog.publish("pirate", builder.adapter(4, peft_type="IA3"))


async def fail_the_proof(house: House, builder: Builder) -> None:
    house.engine.refused.add("pirate@3")
    with pytest.raises(Rejected):
        await house.catalog.publish("pirate", builder.adapter(4))


async def start(house: House, builder: Builder) -> None:
    """Nothing but the sweep and the trash, which `open` has done by now or does in the background."""


async def prepare(builder: Builder) -> None:
    """Two versions, and what two interrupted publications and a removal might have left."""
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        await house.catalog.publish("pirate", builder.adapter(2))
        home = house.store.scratch()
        (home / "half").touch()
        shutil.copytree(house.store.path("pirate", *_first(house)), house.store.path("pirate", 3, "c" * 64))
        shutil.copytree(house.store.path("pirate", *_first(house)), house.store.root / "trash" / "old")


def _first(house: House) -> tuple[int, str]:
    version = house.catalog.record("pirate")["versions"][0]
    return version["version"], version["digest"]


async def state_of(builder: Builder) -> dict[str, Any]:
    """What a start finds, each version loaded into the engine; and nothing else below the state directory."""
    async with builder.open() as house:
        state = {}
        for record in house.catalog.records():
            for version in record["versions"]:
                lease = house.catalog.lease(f"{record['name']}@{version['version']}")
                await house.residency.hold(lease.adapter)
                version["weights"] = hashlib.sha256(
                    (lease.adapter.path / "adapter_model.safetensors").read_bytes()
                ).hexdigest()
                house.residency.release(lease.adapter)
                lease.release()
            state[record["name"]] = {
                "active": record["active"],
                "pinned": record["pinned"],
                "versions": [(v["version"], v["digest"], v["weights"]) for v in record["versions"]],
                "failed": record["last_failure"] is not None,
            }
        expected = {
            str(house.store.path(r["name"], v["version"], v["digest"]).relative_to(builder.state))
            for r in house.catalog.records()
            for v in r["versions"]
        }
    found = {str(path.relative_to(builder.state)) for path in (builder.state / "adapters").glob("*/*")}
    assert found == expected
    assert not list((builder.state / "staging").iterdir())
    assert not list((builder.state / "trash").iterdir())
    return state


async def attempt(builder: Builder, work: Callable[..., Awaitable[None]], left: int | None, keep: int) -> Clockwork:
    clockwork = Clockwork(left)
    try:
        async with builder.open(step=clockwork, keep_versions=keep) as house:
            # The trash is emptied in the background: let its writes come first, so that every run has one order.
            while any((builder.state / "trash").iterdir()) and not clockwork.stopped:
                await asyncio.sleep(0.001)
            await work(house, builder)
    except Crash:
        pass
    return clockwork


@pytest.mark.parametrize(
    ("work", "prepared", "keep"),
    [
        (publish_first, False, 5),
        (publish_another_name, True, 5),
        (swap, True, 5),
        (swap, True, 1),
        (rollback, True, 5),
        (remove, True, 5),
        (remove_version, True, 5),
        (pin, True, 5),
        (refuse, True, 5),
        (fail_the_proof, True, 5),
        (start, True, 5),
    ],
)
async def test_every_write_may_be_the_last(builder, work, prepared, keep):
    if prepared:
        await prepare(builder)
    kept = builder.state.with_name("kept")
    if prepared:
        shutil.copytree(builder.state, kept)

    def restore() -> None:
        shutil.rmtree(builder.state, ignore_errors=True)
        if prepared:
            shutil.copytree(kept, builder.state)

    before = await state_of(builder)
    restore()
    whole = await attempt(builder, work, None, keep)
    after = await state_of(builder)
    outcomes = []
    for left in range(len(whole.passed) + 1):
        restore()
        await attempt(builder, work, left, keep)
        found = await state_of(builder)
        assert found in (before, after), f"neither old nor new after {whole.passed[:left]}"
        outcomes.append(found == after)
        if found == before:
            await attempt(builder, work, None, keep)
            assert await state_of(builder) == after, "what was interrupted can't be done again"
    assert outcomes[-1], "nothing was interrupted, and yet the new state is not there"
    assert outcomes == sorted(outcomes), "once the new state was reached, no later crash lost it"
