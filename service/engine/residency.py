"""Which adapters sit in the engine: leases, pins, eviction.

The engine's own cache drops what it used longest ago, even under a running request, and reads it again inside a
step. So it is never filled beyond its size: room is made here, among what nobody holds, before anything is loaded.
`Seats` is the pure half; `Residency` waits and loads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import structlog

from service.adapter.spec import Problem, ProblemCode
from service.errors import NoCapacity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.engine.port import Engine, EngineAdapter

log = structlog.get_logger(__name__)

Where = Literal["gpu", "cpu", "disk"]

SWAP_ROOM = 2
"""Seats no pin may take: one for whoever isn't pinned, one for the version that replaces it."""


class Seats:
    """Who sits, who is held, who is pinned. Pure: names in, decisions out.

    Invariants: never more seated than `capacity`; whoever is held is seated; a pinned one leaves only by name.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.holds: dict[str, int] = {}
        """Seated name → requests on it, least recently used first."""
        self.pins: set[str] = set()

    def seated(self, name: str) -> bool:
        """Whether it is in the engine (or on its way in)."""
        return name in self.holds

    def hold(self, name: str) -> None:
        """One more request on a seated name, which thereby becomes the most recently used."""
        self.holds[name] = self.holds.pop(name) + 1

    def release(self, name: str) -> None:
        """One request fewer."""
        self.holds[name] -= 1

    def room(self) -> bool:
        """Whether a seat is free without sending anybody away."""
        return len(self.holds) < self.capacity

    def victim(self) -> str | None:
        """Whoever was used longest ago among those that are neither held nor pinned."""
        return next((name for name, held in self.holds.items() if not held and name not in self.pins), None)

    def seat(self, name: str) -> None:
        """Take a free seat; nobody holds it yet."""
        self.holds[name] = 0

    def leave(self, name: str) -> None:
        """Give the seat up."""
        del self.holds[name]

    def may_pin(self, name: str) -> bool:
        """Whether pinning it leaves room to swap."""
        return name in self.pins or len(self.pins) < self.capacity - SWAP_ROOM


class Residency:
    """Brings adapters into the engine before they are needed and keeps them there while they are held.

    Whoever needs a seat passes one door in the order of arrival; whoever is seated already doesn't. A load that
    fails is the error of those who wanted that adapter and of nobody else.
    """

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._engine = engine
        self._seats = Seats(capacity)
        self._adapters: dict[str, EngineAdapter] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._door = asyncio.Lock()
        self._change = asyncio.Event()
        self._where: Mapping[str, str] = {}

    async def hold(self, adapter: EngineAdapter) -> None:
        """Return once it is in the engine, with a lease on it; pair with `release`. Raises what its load raised."""
        if not self._seats.seated(adapter.name):
            async with self._door:
                if not self._seats.seated(adapter.name):
                    await self._make_room()
                    self._take(adapter)
        self._seats.hold(adapter.name)
        if load := self._loads.get(adapter.name):
            await self._loaded(adapter, load)

    def release(self, adapter: EngineAdapter) -> None:
        """Give one lease back."""
        self._seats.release(adapter.name)
        self._notify()

    async def retire(self, name: str) -> None:
        """Take an adapter out for good, once nobody holds it."""
        self._seats.pins.discard(name)
        while self._seats.seated(name):
            if self._seats.holds[name]:
                await self._change.wait()
                continue
            async with self._door:
                if self._seats.holds.get(name) == 0:
                    await self._evict(name)

    def pin(self, name: str) -> None:
        """Never evict it. Raises NoCapacity when pins would leave no room to swap."""
        if not self._seats.may_pin(name):
            limit = max(self._seats.capacity - SWAP_ROOM, 0)
            raise NoCapacity(
                [
                    Problem(
                        ProblemCode.NO_CAPACITY,
                        f"{limit} adapters are pinned already; the rest of the engine's room is needed to swap.",
                        "pin",
                        "Unpin another adapter, or start the service with a larger --max-cpu-loras.",
                    )
                ]
            )
        self._seats.pins.add(name)

    def unpin(self, name: str) -> None:
        """Let it be evicted like any other."""
        self._seats.pins.discard(name)
        self._notify()

    def where(self, name: str) -> Where:
        """Where an adapter sits: in a slot (as of the last `refresh`), in the engine's memory, or on disk only."""
        if not self._seats.seated(name) or name in self._loads:
            return "disk"
        return "gpu" if self._where.get(name) == "gpu" else "cpu"

    async def refresh(self) -> None:
        """Ask the engine which adapters are in slots."""
        self._where = await self._engine.resident()

    async def _make_room(self) -> None:
        while not self._seats.room():
            if victim := self._seats.victim():
                await self._evict(victim)
            else:
                await self._change.wait()

    def _take(self, adapter: EngineAdapter) -> None:
        self._seats.seat(adapter.name)
        self._adapters[adapter.name] = adapter
        load = asyncio.create_task(self._load(adapter), name=f"load {adapter.name}")
        # A failure is raised in those who wait for it; when all have left, it has still been logged.
        load.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._loads[adapter.name] = load

    async def _load(self, adapter: EngineAdapter) -> None:
        try:
            await self._engine.load(adapter)
        except BaseException:
            log.warning("adapter_load_failed", adapter=adapter.name)
            self._seats.leave(adapter.name)
            del self._adapters[adapter.name]
            raise
        finally:
            del self._loads[adapter.name]
            self._notify()

    async def _loaded(self, adapter: EngineAdapter, load: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(load)
        except BaseException:
            # A load that failed took the seat and every hold on it away; otherwise it is this caller who leaves.
            if not load.done() or not (load.cancelled() or load.exception()):
                self.release(adapter)
            raise

    async def _evict(self, name: str) -> None:
        """Unload one that nobody holds. Only behind the door, so no load of the same name can overtake it."""
        if load := self._loads.get(name):
            await asyncio.wait([load])
            if not self._seats.seated(name) or self._seats.holds[name]:
                return
        self._seats.leave(name)
        await self._engine.unload(self._adapters.pop(name))

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
