"""Moving a name from one reference to the next: on disk first, then in memory, then, in its own time, in the engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from service.errors import LoradockError, NoCapacity
from service.registry.lifecycle import Event, State
from service.registry.tasks import Tasks, to_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.engine.residency import Residency
    from service.registry.entry import Entry, Served
    from service.registry.observer import Observer
    from service.registry.refs import Ref
    from service.registry.store import Store

log = structlog.get_logger(__name__)


class Switch:
    """The only one who changes an entry's reference. Callers hold the entry's lock."""

    def __init__(self, store: Store, residency: Residency, observer: Observer) -> None:
        self._store = store
        self._residency = residency
        self._observer = observer
        self._drains = Tasks()

    async def move(self, entry: Entry, ref: Ref) -> Sequence[asyncio.Task[None]]:
        """Make `ref` the entry's reference. When StoreUnavailable is raised, everything is as it was.

        Requests that arrive after the return get what `ref` points at. The tasks returned end when the versions that
        no longer are what they were have drained; nobody has to await them.
        """
        await to_end(asyncio.to_thread(self._store.write, ref))
        before, pinned = entry.active, entry.ref.pinned
        draining = entry.adopt(ref)
        entry.damage = None
        if entry.active is not before:
            self._announce(entry, before)
            if pinned and before:
                self._residency.unpin(before.engine.name)
            if ref.pinned:
                self.pin(entry)
        return [self._drains.spawn(self._drain(entry, served), f"drain {served.engine.name}") for served in draining]

    def announce(self, entry: Entry) -> None:
        """Tell the observer about a name that was restored."""
        self._announce(entry, None)

    def pin(self, entry: Entry) -> None:
        """Pin what a pinned name points at. A pin that no longer fits is only logged: the name serves all the same."""
        if entry.active and entry.active.servable:
            try:
                self._residency.pin(entry.active.engine.name)
            except NoCapacity:
                log.warning("pin_without_room", adapter=entry.active.engine.name)

    async def stop(self) -> None:
        """Drop what is still draining: its files are forgotten already, and the next start deletes them."""
        await self._drains.cancel()

    def _announce(self, entry: Entry, before: Served | None) -> None:
        if entry.active and not before:
            self._observer.serve(entry.name)
        elif before and not entry.active:
            self._observer.retire(entry.name)

    async def _drain(self, entry: Entry, served: Served) -> None:
        await served.idle()
        if served.state is not State.DRAINING and served not in entry.leaving:
            return
        try:
            await self._residency.retire(served.engine.name)
        except LoradockError as error:
            log.warning("unload_failed", adapter=served.engine.name, reason=error.message)
        if served.state is State.DRAINING:
            served.advance(Event.DRAINED)
        if served in entry.leaving:
            await self._delete(served)
            entry.leaving.discard(served)
        log.info("version_drained", adapter=served.engine.name)

    async def _delete(self, served: Served) -> None:
        try:
            await to_end(asyncio.to_thread(self._store.discard, served.engine.path))
        except LoradockError as error:
            log.warning("deletion_left_to_next_start", adapter=served.engine.name, reason=error.message)
