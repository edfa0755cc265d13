"""Who sits in the engine: nobody who is held is ever sent away, and the engine is never filled beyond its size."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.echo import EchoEngine
from service.engine.port import EngineAdapter, EngineLimits
from service.engine.residency import SWAP_ROOM, Residency, Seats
from service.errors import NoCapacity, Rejected

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

NAMES = st.sampled_from([f"a{i}@1" for i in range(12)])


class SeatsMachine(RuleBasedStateMachine):
    """Any order of hold, release, evict and pin keeps the invariants of `Seats`."""

    def __init__(self) -> None:
        super().__init__()
        self.seats = Seats(4)
        self.held: list[str] = []

    @rule(name=NAMES)
    def hold(self, name: str) -> None:
        if not self.seats.seated(name):
            if not self.seats.room():
                victim = self.seats.victim()
                if victim is None:
                    return
                assert victim not in self.held
                assert victim not in self.seats.pins
                self.seats.leave(victim)
            self.seats.seat(name)
        self.seats.hold(name)
        self.held.append(name)
        assert list(self.seats.holds)[-1] == name

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.held))
        self.held.remove(name)
        self.seats.release(name)

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        if self.seats.may_pin(name):
            self.seats.pins.add(name)

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        self.seats.pins.discard(name)

    @invariant()
    def never_overfull(self) -> None:
        assert len(self.seats.holds) <= self.seats.capacity

    @invariant()
    def the_held_are_seated(self) -> None:
        for name in self.held:
            assert self.seats.holds[name] == self.held.count(name)

    @invariant()
    def room_to_swap_remains(self) -> None:
        assert len(self.seats.pins) <= self.seats.capacity - SWAP_ROOM


TestSeats = SeatsMachine.TestCase
TestSeats.settings = settings(max_examples=200, stateful_step_count=50)  # 10,000 operations


def adapter(directory: Path, name: str) -> EngineAdapter:
    path = directory / name
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").touch()
    return EngineAdapter(name, path, 1)


@pytest.fixture
async def engine() -> EchoEngine:
    """EchoEngine asserts by itself that it is never overfilled and that nothing is unloaded under a request."""
    echo = EchoEngine(EngineLimits(16, 1, 3, 8, 4096, "bfloat16"))
    await echo.start()
    return echo


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_least_recently_used_leaves_first(engine: EchoEngine, tmp_path: Path) -> None:
    """With all seats taken, the one that was used longest ago makes room."""
    residency = Residency(engine, 3)
    for name in ("a@1", "b@1", "c@1", "a@1", "d@1"):
        await residency.hold(adapter(tmp_path, name))
        residency.release(adapter(tmp_path, name))
    assert sorted(engine.loaded) == ["a@1", "c@1", "d@1"]
    assert residency.where("b@1") == "disk"


async def test_waits_while_every_seat_is_held(engine: EchoEngine, tmp_path: Path) -> None:
    """A fourth adapter waits until a seat is let go, and those who came first are seated first."""
    residency = Residency(engine, 3)
    for name in ("a@1", "b@1", "c@1"):
        await residency.hold(adapter(tmp_path, name))
    first = asyncio.create_task(residency.hold(adapter(tmp_path, "d@1")))
    second = asyncio.create_task(residency.hold(adapter(tmp_path, "e@1")))
    await settle()
    assert not first.done()
    residency.release(adapter(tmp_path, "b@1"))
    await first
    await settle()
    assert not second.done()
    residency.release(adapter(tmp_path, "a@1"))
    await second
    assert sorted(engine.loaded) == ["c@1", "d@1", "e@1"]


async def test_many_requests_load_once(engine: EchoEngine, tmp_path: Path) -> None:
    """Twenty requests for one cold adapter cost one load."""
    residency = Residency(engine, 3)
    await asyncio.gather(*(residency.hold(adapter(tmp_path, "a@1")) for _ in range(20)))
    assert engine.events == [("load", "a@1")]


async def test_a_failed_load_is_nobody_elses_error(engine: EchoEngine, tmp_path: Path) -> None:
    """All who wanted it are told, the others go on, and it can be tried again."""
    residency = Residency(engine, 3)
    engine.refused.add("bad@1")
    results = await asyncio.gather(
        *(residency.hold(adapter(tmp_path, name)) for name in ("bad@1", "good@1", "bad@1")), return_exceptions=True
    )
    assert [type(result) for result in results] == [Rejected, type(None), Rejected]
    engine.refused.clear()
    await residency.hold(adapter(tmp_path, "bad@1"))
    assert residency.where("bad@1") != "disk"


async def test_a_waiter_that_leaves_holds_nothing(engine: EchoEngine, tmp_path: Path) -> None:
    """Cancelled while waiting at the door, a request takes no seat and blocks nobody behind it."""
    residency = Residency(engine, 3)
    for name in ("a@1", "b@1", "c@1"):
        await residency.hold(adapter(tmp_path, name))
    gone = asyncio.create_task(residency.hold(adapter(tmp_path, "d@1")))
    stays = asyncio.create_task(residency.hold(adapter(tmp_path, "e@1")))
    await settle()
    gone.cancel()
    await settle()
    residency.release(adapter(tmp_path, "a@1"))
    await stays
    assert "d@1" not in engine.loaded


async def test_retire_waits_for_the_last_request(engine: EchoEngine, tmp_path: Path) -> None:
    """An adapter is unloaded when its last request has ended, and not before."""
    residency = Residency(engine, 3)
    held = adapter(tmp_path, "a@1")
    await residency.hold(held)
    await residency.hold(held)
    retiring = asyncio.create_task(residency.retire("a@1"))
    residency.release(held)
    await settle()
    assert not retiring.done()
    residency.release(held)
    await retiring
    assert not engine.loaded


async def test_pins_stay_and_leave_room(engine: EchoEngine, tmp_path: Path) -> None:
    """A pinned adapter outlasts any number of others; the pin that would leave no room to swap is refused."""
    residency = Residency(engine, 3)
    residency.pin("a@1")
    with pytest.raises(NoCapacity):
        residency.pin("b@1")
    for name in ("a@1", "b@1", "c@1", "d@1", "e@1"):
        await residency.hold(adapter(tmp_path, name))
        residency.release(adapter(tmp_path, name))
    assert "a@1" in engine.loaded
    residency.unpin("a@1")
    residency.pin("b@1")


async def test_where_follows_the_engine(engine: EchoEngine, tmp_path: Path) -> None:
    """Slot, memory or disk: as the engine says."""
    residency = Residency(engine, 3)
    for name in ("a@1", "b@1"):
        await residency.hold(adapter(tmp_path, name))
    await residency.refresh()
    assert [residency.where(name) for name in ("a@1", "b@1", "c@1")] == ["cpu", "gpu", "disk"]
