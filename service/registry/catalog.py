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
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from service.adapter.spec import name_problem
from service.errors import (
    AdapterNotFound,
    ModelNotFound,
    NameTaken,
    Rejected,
    StoreUnavailable,
    Unavailable,
)
from service.registry.changes import Changes
from service.registry.doors import Doors
from service.registry.entry import Entry, failed_record
from service.registry.lease import Lease, ServedModel
from service.registry.lifecycle import State
from service.registry.observer import NullObserver
from service.registry.proof import Prover
from service.registry.publication import Publication, Publisher
from service.registry.refs import Failure, Ref
from service.registry.restoration import TAKEN, Restoration
from service.registry.selector import nearest, parse
from service.registry.switch import Switch
from service.registry.tasks import Tasks, to_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.spec import Problem
    from service.engine.port import Engine
    from service.engine.residency import Residency
    from service.registry.entry import Served
    from service.registry.observer import Observer
    from service.registry.refs import Offer
    from service.registry.staging import Staged
    from service.registry.store import Store

__all__ = ["Catalog", "Lease", "Publication", "ServedModel"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

GRACE = 10.0
"""Seconds that publications and removals get to end when the service stops."""
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
        self._changes = Changes(self._switch, residency, clock)
        self._restoration = Restoration(store, self._prover, self._base_names)
        self._entries: dict[str, Entry] = {}
        self._unnamed: dict[str, Failure] = {}
        """Scanned directories that can't be published at all; not kept, since every start finds them again."""
        self._work = Tasks()
        self._background = Tasks()
        self.doors = Doors(adapters_dir, adapter_paths)
        self.max_bytes = max_bytes

    async def start(self) -> None:
        """Serve what the store holds. What has to be proven again is `loading` meanwhile, in the background."""
        self._entries = await asyncio.to_thread(self._restoration.read)
        for entry in self._entries.values():
            self._switch.announce(entry)
            if entry.ref.pinned and entry.active:
                self._switch.pin(entry)
                self._background.spawn(self._changes.load(entry.active), f"load {entry.name}")
        self._work.spawn(to_end(asyncio.to_thread(self._store.empty_trash)), "empty the trash")
        self._background.spawn(self._restoration.prove_again(list(self._entries.values())), "prove again")

    async def stop(self) -> None:
        """Finish what was begun for clients, drop what the next start takes up by itself."""
        await self._work.finish(GRACE)
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
        names = {name for name in self._entries if self._listed(name)}
        return [self.record(name) for name in sorted(names | self._unnamed.keys())]

    def record(self, name: str) -> dict[str, Any]:
        """One name. Raises AdapterNotFound."""
        if entry := self._listed(name):
            return entry.record(self._residency.where)
        if failure := self._unnamed.get(name):
            return failed_record(name, failure)
        raise AdapterNotFound(name)

    def counts(self) -> dict[str, int]:
        """State → how many names."""
        standings = Counter(str(entry.standing) for entry in self._entries.values())
        standings["failed"] += sum(not self._listed(name) for name in self._unnamed)
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
        serving what it served. A caller who leaves when the copy is made doesn't stop what follows.
        """
        origin = "upload" if offered_by is None else PurePath(offered_by).name
        return await self._publish(name, source, origin, offered_by, allow_base_mismatch)

    async def publish_path(self, name: str, path: str, *, allow_base_mismatch: bool = False) -> Publication:
        """Publish a directory of this machine that clients may name. Raises as `publish`, `path_forbidden` included."""
        self._check_name(name)
        source = await asyncio.to_thread(self.doors.open, name, path)
        return await self._publish(name, source.directory, source.origin, source.offered_by, allow_base_mismatch)

    async def rollback(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Make `version` active again, or the one that was active before. Returns the record.

        Raises AdapterNotFound, VersionNotFound, Conflict, or what kept the version from being loaded.
        """
        await self._change(self._changes.rollback(self._entry(name), version), f"roll back {name}")
        return self.record(name)

    async def remove(self, name: str) -> None:
        """Stop serving a name at once; return when its last request has ended and its files are gone.

        Raises AdapterNotFound, StoreUnavailable.
        """
        noted = self._unnamed.pop(name, None)
        if not noted or self._listed(name):
            await self._change(self._changes.remove(self._entry(name)), f"remove {name}")

    async def remove_version(self, name: str, number: int) -> None:
        """Forget one version that isn't active; return when its files are gone.

        Raises AdapterNotFound, VersionNotFound, Conflict, StoreUnavailable.
        """
        await self._change(self._changes.remove_version(self._entry(name), number), f"remove {name}@{number}")

    async def pin(self, name: str) -> dict[str, Any]:
        """Load the active version, and whichever follows it, and keep it loaded. Raises AdapterNotFound, NoCapacity."""
        await self._change(self._changes.pin(self._entry(name)), f"pin {name}")
        return self.record(name)

    async def unpin(self, name: str) -> dict[str, Any]:
        """Let it be evicted like any other. Raises AdapterNotFound."""
        await self._change(self._changes.unpin(self._entry(name)), f"unpin {name}")
        return self.record(name)

    # What the watcher asks.

    def offer(self, name: str, directory: str, *, allow_base_mismatch: bool) -> Offer | None:
        """What a watched directory last held; None where it should be tried whatever it held.

        That is when it was never judged, when it was refused under other conditions than today's, or when it is the
        active version and that one is not fit to be served as it was published.
        """
        entry = self._entries.get(name)
        offer = entry.ref.offers.get(directory) if entry else None
        if entry is None or offer is None:
            return None
        if offer.refused not in {None, self._prover.conditions(allow_base_mismatch=allow_base_mismatch)}:
            return None
        active = entry.active
        if offer.refused is None and active and active.version.digest == offer.digest:
            unfit = not active.servable if allow_base_mismatch else active.state is State.FAILED
            return None if unfit else offer
        return offer

    def offering(self, home: Path) -> set[str]:
        """The names that subdirectories of `home` have offered and that are still listed."""
        names = {name for name, entry in self._entries.items() if str(home / name) in entry.ref.offers}
        return {name for name in names | self._unnamed.keys() if name in self._unnamed or self._listed(name)}

    async def vanished(self, name: str, directory: str, *, retire: bool) -> None:
        """A watched directory is gone: forget what it only failed to offer and, if so told, retire what it offered.

        Its return counts as new then. Raises StoreUnavailable.
        """
        self._unnamed.pop(name, None)
        entry = self._listed(name)
        offer = entry.ref.offers.get(directory) if entry else None
        if entry and offer and (entry.active is None or (retire and entry.active.version.digest == offer.digest)):
            await self._change(self._changes.remove(entry, forget=directory), f"retire {name}")

    async def restamp(self, name: str, directory: str, stamp: str) -> None:
        """Note that a directory was touched and still holds what it held. Raises StoreUnavailable."""
        entry = self._entries[name]
        async with entry.lock:
            if offer := entry.ref.offers.get(directory):
                await self._switch.move(entry, entry.ref.offered(directory, replace(offer, stamp=stamp)))

    def refuse(self, name: str, problems: Sequence[Problem]) -> None:
        """List a scanned directory as failed that can't be published under its name, whatever it holds."""
        self._unnamed[name] = Failure(self._clock(), None, tuple(problems))

    # How it is done.

    def _check_name(self, name: str) -> None:
        if problem := name_problem(name):
            raise Rejected([problem])
        if name in self._base_names:
            raise NameTaken([TAKEN], name)

    async def _publish(
        self, name: str, source: Path, origin: str, offered_by: str | None, allow_base_mismatch: bool
    ) -> Publication:
        self._check_name(name)
        entry = self._entries.setdefault(name, Entry(Ref(name)))
        if entry.damage:
            raise StoreUnavailable(entry.damage.message)
        entry.publishing += 1
        try:
            staged = await self._publisher.stage(source, origin, offered_by, allow_base_mismatch=allow_base_mismatch)
        except BaseException:
            self._published(entry)
            raise
        return await self._change(self._admit(entry, staged), f"publish {name}")

    async def _admit(self, entry: Entry, staged: Staged) -> Publication:
        try:
            return await self._publisher.admit(entry, staged)
        finally:
            self._published(entry)

    def _published(self, entry: Entry) -> None:
        entry.publishing -= 1
        if entry.forgettable:
            del self._entries[entry.name]
        elif entry.active:
            self._unnamed.pop(entry.name, None)

    async def _change(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Carry a change through, also when the client who asked for it leaves."""
        return await self._work.carry_through(work, name)

    def _listed(self, name: str) -> Entry | None:
        entry = self._entries.get(name)
        return entry if entry and entry.standing else None

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise AdapterNotFound(name) from None

    def _released(self, entry: Entry, served: Served) -> None:
        served.release()
        entry.last_used = self._clock()
