"""What is served under which name: publish, promote, roll back, pin, remove, and the leases that requests hold.

One lock a name orders what happens to it. Every change is computed on the reference (`refs.Ref`), written to the
store, and only then followed in memory; so a crash, a full disk or a failed proof leaves the name where it was.
Leases are taken and given back without waiting, between two steps of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog

from service.adapter.spec import name_problem
from service.errors import (
    AdapterNotFound,
    Conflict,
    ModelNotFound,
    NameTaken,
    Rejected,
    StoreUnavailable,
    Unavailable,
)
from service.registry.doors import Doors
from service.registry.entry import Entry, failed_record
from service.registry.lease import Lease, ServedModel
from service.registry.lifecycle import State
from service.registry.observer import NullObserver
from service.registry.proof import Prover
from service.registry.publication import Publication, Publisher
from service.registry.refs import Failure, Ref
from service.registry.restoration import DAMAGED, TAKEN, Restoration
from service.registry.selector import nearest, parse
from service.registry.switch import Switch
from service.registry.tasks import Tasks, to_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.spec import Problem
    from service.engine.port import Engine
    from service.engine.residency import Residency
    from service.registry.entry import Served
    from service.registry.observer import Observer
    from service.registry.refs import Offer
    from service.registry.store import Store

__all__ = ["Catalog", "Lease", "Publication", "ServedModel"]

log = structlog.get_logger(__name__)

UPLOAD = "upload"
STATES = ("ready", "loading", "draining", "failed")


def _anybody(_name: str) -> bool:
    return True


class Catalog:
    """See the module. `store` is open for writing (`Store.open`), `engine` has started before `start` is called.

    served: what the base is called by requests; the first is its name in answers and metrics. max_rank: the engine's
    limit. max_bytes: of one adapter's files. adapter_paths: below which absolute paths may be registered. clock:
    seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        residency: Residency,
        base: Base,
        *,
        served: Sequence[str],
        max_rank: int,
        max_bytes: int,
        keep_versions: int = 5,
        adapters_dir: Path | None = None,
        adapter_paths: Sequence[Path] = (),
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._residency = residency
        self._base_names = tuple(dict.fromkeys(served))
        self._observer = observer or NullObserver()
        self._clock = clock
        self._prover = Prover(engine, residency, base, max_rank)
        self._switch = Switch(store, residency, self._observer)
        self._publisher = Publisher(
            store,
            residency,
            self._prover,
            self._switch,
            self._observer,
            clock,
            keep_versions=keep_versions,
            max_bytes=max_bytes,
        )
        self._restoration = Restoration(store, self._prover, self._base_names)
        self._entries: dict[str, Entry] = {}
        self._unnamed: dict[str, Failure] = {}
        """Scanned directories whose name no adapter can have; not kept, since every start finds them again."""
        self._work = Tasks()
        self._background = Tasks()
        self.doors = Doors(adapters_dir, adapter_paths)
        self.max_bytes = max_bytes

    async def start(self) -> None:
        """Serve what the store holds. What has to be proven again is `loading` meanwhile, in the background."""
        self._entries = await asyncio.to_thread(self._restoration.read)
        for entry in self._entries.values():
            self._switch.announce(entry)
            if entry.ref.pinned:
                self._switch.pin(entry)
        self._background.spawn(asyncio.to_thread(self._store.empty_trash), "empty the trash")
        self._background.spawn(self._restoration.prove_again(list(self._entries.values())), "prove again")

    async def stop(self) -> None:
        """Finish what was begun for clients, drop what can be taken up at the next start."""
        await self._work.finish()
        await self._switch.stop()
        await self._background.cancel()

    # What requests ask.

    def lease(self, model: str | None = None, visible: Callable[[str], bool] = _anybody) -> Lease:
        """The version that a request for `model` runs on; None is the base. Give it back with `release`.

        `visible` tells which adapters the caller may know of; another one is exactly an unknown model.
        Raises ModelNotFound, or Unavailable while the version is being proven again.
        """
        if model is None or model in self._base_names:
            return Lease(self._base_names[0])
        wanted = parse(model)
        entry = self._entries.get(wanted.name) if wanted and visible(wanted.name) else None
        served = entry.find(wanted) if entry and wanted else None
        if entry is None or served is None or served.state is State.FAILED:
            ready = (name for name, known in self._entries.items() if visible(name) and known.standing == "ready")
            raise ModelNotFound(model[:200], nearest(model, (*self._base_names, *ready)))
        if not served.servable:
            raise Unavailable(f"The adapter {entry.name!r} is being proven for this base model. Try again shortly.")
        served.lease()
        entry.last_used = self._clock()
        return Lease(entry.name, served, partial(self._released, entry, served))

    def models(self) -> list[ServedModel]:
        """What requests may ask for: the base first, then every ready adapter by name."""
        base = self._base_names[0]
        models = [ServedModel(base)]
        for name, entry in sorted(self._entries.items()):
            if (active := entry.active) and active.servable:
                version = active.version
                models.append(ServedModel(name, version.number, version.digest, base, version.created))
        return models

    # What administrators ask.

    def records(self) -> list[dict[str, Any]]:
        """Every name, in the contract's form."""
        names = [name for name, entry in self._entries.items() if entry.standing]
        return [self.record(name) for name in sorted({*names, *self._unnamed})]

    def record(self, name: str) -> dict[str, Any]:
        """One name. Raises AdapterNotFound."""
        entry = self._entries.get(name)
        if entry and entry.standing:
            return entry.record(self._residency.where)
        if failure := self._unnamed.get(name):
            return failed_record(name, failure)
        raise AdapterNotFound(name)

    def counts(self) -> dict[str, int]:
        """State → how many names."""
        standings = Counter(str(entry.standing) for entry in self._entries.values())
        standings["failed"] += len(self._unnamed)
        return {state: standings[state] for state in STATES}

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """An empty directory in the store's staging for an upload, deleted at the end. Raises StoreUnavailable."""
        directory = await to_end(asyncio.to_thread(self._store.scratch))
        try:
            yield directory
        finally:
            await to_end(asyncio.to_thread(self._store.delete, directory))

    async def publish(
        self, name: str, source: Path, *, offered_by: str | None = None, allow_base_mismatch: bool = False
    ) -> Publication:
        """Make the content of `source` the active version of `name`, once it is proven.

        Content that is active already is left as it is. `offered_by` is the key of the watched directory it is.
        Raises Rejected with every problem, NameTaken, TooLarge, StoreUnavailable, EngineDead; the name then goes on
        serving what it served. A caller who leaves after the copy is made doesn't stop what follows.
        """
        origin = UPLOAD if offered_by is None else self.doors.origin(source)
        return await self._publish(name, source, offered_by=offered_by, origin=origin, lax=allow_base_mismatch)

    async def publish_path(self, name: str, path: str, *, allow_base_mismatch: bool = False) -> Publication:
        """Publish a directory of this machine that clients may name. Raises as `publish`, `path_forbidden` included."""
        source = await asyncio.to_thread(self.doors.open, path)
        offered_by = self.doors.watched(name, source)
        origin = self.doors.origin(source)
        return await self._publish(name, source, offered_by=offered_by, origin=origin, lax=allow_base_mismatch)

    async def rollback(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Make `version` active again, or the one that was active before. Returns the record.

        Raises AdapterNotFound, VersionNotFound, Conflict, or what kept the version from being loaded.
        """
        return await self._work.carry_through(self._rollback(name, version), f"roll back {name}")

    async def remove(self, name: str) -> None:
        """Stop serving a name at once; return when its last request has ended and its files are gone.

        Raises AdapterNotFound, StoreUnavailable.
        """
        if self._unnamed.pop(name, None) is None:
            await self._work.carry_through(self._remove(name), f"remove {name}")

    async def remove_version(self, name: str, number: int) -> None:
        """Forget one version that isn't active; return when its files are gone.

        Raises AdapterNotFound, VersionNotFound, Conflict, StoreUnavailable.
        """
        await self._work.carry_through(self._remove_version(name, number), f"remove {name}@{number}")

    async def pin(self, name: str) -> dict[str, Any]:
        """Load the active version, and whichever follows it, and keep it loaded. Raises AdapterNotFound, NoCapacity."""
        return await self._work.carry_through(self._pin(name), f"pin {name}")

    async def unpin(self, name: str) -> dict[str, Any]:
        """Let it be evicted like any other. Raises AdapterNotFound."""
        return await self._work.carry_through(self._unpin(name), f"unpin {name}")

    # What the watcher asks.

    def offer(self, name: str, directory: str, *, allow_base_mismatch: bool) -> Offer | None:
        """What a watched directory last held; None where that was never judged, or under other conditions."""
        entry = self._entries.get(name)
        offer = entry.ref.offers.get(directory) if entry else None
        if offer and offer.refused in {None, self._prover.conditions(allow_base_mismatch=allow_base_mismatch)}:
            return offer
        return None

    async def restamp(self, name: str, directory: str, stamp: str) -> None:
        """Note that a directory was touched and still holds what it held. Raises StoreUnavailable."""
        entry = self._entries[name]
        async with entry.lock:
            if offer := entry.ref.offers.get(directory):
                await self._switch.move(entry, entry.ref.offered(directory, replace(offer, stamp=stamp)))

    def refuse(self, name: str, problems: Sequence[Problem]) -> None:
        """List something as failed whose name no adapter can have."""
        self._unnamed[name] = Failure(self._clock(), None, tuple(problems))

    # How it is done.

    def _check_name(self, name: str) -> None:
        if problem := name_problem(name):
            raise Rejected([problem])
        if name in self._base_names:
            raise NameTaken([TAKEN], name)

    async def _publish(self, name: str, source: Path, *, offered_by: str | None, origin: str, lax: bool) -> Publication:
        self._check_name(name)
        entry = self._entries.setdefault(name, Entry(Ref(name)))
        if entry.damage:
            raise StoreUnavailable(DAMAGED.message)
        entry.publishing += 1
        try:
            staged = await self._publisher.stage(
                source,
                origin=origin,
                offered_by=offered_by,
                allow_base_mismatch=lax,
            )
            created = await self._work.carry_through(self._publisher.admit(entry, staged), f"publish {name}")
        finally:
            entry.publishing -= 1
            if entry.forgettable:
                self._entries.pop(name, None)
        self._unnamed.pop(name, None)
        return Publication(self.record(name), created)

    async def _rollback(self, name: str, number: int | None) -> dict[str, Any]:
        async with self._changing(name) as entry:
            ref = entry.ref.rollback(number)
            if ref is not entry.ref:
                await self._activate(entry, ref)
            return self.record(name)

    async def _activate(self, entry: Entry, ref: Ref) -> None:
        target = entry.served[cast(int, ref.active)]
        if not target.servable:
            raise Conflict(f"Version {ref.active} of {entry.name!r} can't be served with this base model.")
        await self._residency.hold(target.engine)
        try:
            await self._switch.move(entry, ref)
        finally:
            self._residency.release(target.engine)
        log.info("adapter_rolled_back", adapter=target.engine.name)

    async def _remove(self, name: str) -> None:
        async with self._changing(name) as entry:
            drains = await self._switch.move(entry, entry.ref.remove(self._clock()))
            log.info("adapter_removed", adapter=name)
        await asyncio.gather(*drains)

    async def _remove_version(self, name: str, number: int) -> None:
        async with self._changing(name) as entry:
            drains = await self._switch.move(entry, entry.ref.without(number))
            log.info("version_removed", adapter=f"{name}@{number}")
        await asyncio.gather(*drains)

    async def _pin(self, name: str) -> dict[str, Any]:
        async with self._changing(name) as entry:
            active = entry.active
            if active is None or not active.servable:
                raise Conflict(f"The adapter {name!r} has no version that could be kept loaded.")
            self._residency.pin(active.engine.name)
            try:
                await self._residency.hold(active.engine)
                self._residency.release(active.engine)
                await self._switch.move(entry, entry.ref.pin(True))
            except BaseException:
                self._residency.unpin(active.engine.name)
                raise
            return self.record(name)

    async def _unpin(self, name: str) -> dict[str, Any]:
        async with self._changing(name) as entry:
            await self._switch.move(entry, entry.ref.pin(False))
            if entry.active:
                self._residency.unpin(entry.active.engine.name)
            return self.record(name)

    @asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[Entry]:
        entry = self._entries.get(name)
        if entry is None:
            raise AdapterNotFound(name)
        async with entry.lock:
            if entry.standing in {None, "draining"}:
                raise AdapterNotFound(name)
            yield entry

    def _released(self, entry: Entry, served: Served) -> None:
        served.release()
        entry.last_used = self._clock()
