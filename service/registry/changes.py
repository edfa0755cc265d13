"""What administrators change about a name that is there: its active version, its pin, its being there at all."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from service.errors import AdapterNotFound, Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.engine.residency import Residency
    from service.registry.entry import Entry, Served
    from service.registry.refs import Ref
    from service.registry.switch import Switch

log = structlog.get_logger(__name__)


class Changes:
    """Every method takes the entry's lock, and raises AdapterNotFound when by then the name is gone.

    All raise StoreUnavailable when the change can't be written; nothing has changed then.
    """

    def __init__(self, switch: Switch, residency: Residency, clock: Callable[[], float]) -> None:
        self._switch = switch
        self._residency = residency
        self._clock = clock

    async def rollback(self, entry: Entry, number: int | None) -> None:
        """Make another version active, loaded already. Raises VersionNotFound, Conflict, or what its load raised."""
        async with _present(entry):
            ref = entry.ref.rollback(number)
            if ref is not entry.ref:
                await self._activate(entry, ref)

    async def remove(self, entry: Entry, forget: str = "") -> None:
        """Serve it no longer; return when its last request has ended and its files are gone.

        `forget` is a watched directory whose return is to count as new.
        """
        async with _present(entry):
            drains = await self._switch.move(entry, entry.ref.remove(self._clock()).forget(forget))
            log.info("adapter_removed", adapter=entry.name)
        await asyncio.gather(*drains)

    async def remove_version(self, entry: Entry, number: int) -> None:
        """The same for one version that isn't active. Raises VersionNotFound, Conflict."""
        async with _present(entry):
            drains = await self._switch.move(entry, entry.ref.without(number))
            log.info("version_removed", adapter=f"{entry.name}@{number}")
        await asyncio.gather(*drains)

    async def pin(self, entry: Entry) -> None:
        """Load the active version and keep it loaded. Raises NoCapacity, Conflict, or what the load raised."""
        async with _present(entry):
            active = _servable(entry, entry.ref)
            self._residency.pin(active.engine.name)
            try:
                await self.load(active)
                await self._switch.move(entry, entry.ref.pin(True))
            except BaseException:
                if not entry.ref.pinned:
                    self._residency.unpin(active.engine.name)
                raise

    async def unpin(self, entry: Entry) -> None:
        """Let it be evicted like any other."""
        async with _present(entry):
            await self._switch.move(entry, entry.ref.pin(False))
            if entry.active:
                self._residency.unpin(entry.active.engine.name)

    async def load(self, served: Served) -> None:
        """Bring a version into the engine; whether it stays is up to pins and use."""
        await self._residency.hold(served.engine)
        self._residency.release(served.engine)

    async def _activate(self, entry: Entry, ref: Ref) -> None:
        target = _servable(entry, ref)
        await self._residency.hold(target.engine)
        try:
            await self._switch.move(entry, ref)
        finally:
            self._residency.release(target.engine)
        log.info("adapter_rolled_back", adapter=target.engine.name)


@asynccontextmanager
async def _present(entry: Entry) -> AsyncIterator[None]:
    async with entry.lock:
        if entry.standing in {None, "draining"}:
            raise AdapterNotFound(entry.name)
        yield


def _servable(entry: Entry, ref: Ref) -> Served:
    """The version that `ref` points at, where requests may run on it."""
    if ref.active is None:
        raise Conflict(f"The adapter {entry.name!r} has no version that could be served.")
    target = entry.served[ref.active]
    if not target.servable:
        raise Conflict(f"Version {ref.active} of {entry.name!r} is not, or not yet, fit for this base model.")
    return target
