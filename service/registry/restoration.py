"""The registry after a start: read from references alone; proven again where a proof was made for something else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from service.adapter.spec import Problem, ProblemCode, codes
from service.errors import Rejected, StoreUnavailable
from service.registry.entry import Entry, Served
from service.registry.lifecycle import Event, State
from service.registry.refs import Ref

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from collections.abc import Set as AbstractSet

    from service.registry.proof import Prover
    from service.registry.refs import Version
    from service.registry.store import Restored, Store

log = structlog.get_logger(__name__)

LOST = Problem(
    ProblemCode.WEIGHTS_MISSING,
    "The store has lost the files of this version.",
    "",
    "Publish the adapter again.",
)
DAMAGED = Problem(
    ProblemCode.WEIGHTS_MISSING,
    "What the store remembers of this adapter can't be read; its files are left alone.",
    "",
    "Restore the reference file from a backup and restart, or delete the adapter and publish it again.",
)
TAKEN = Problem(
    ProblemCode.NAME_TAKEN,
    "The base model is served under this name now.",
    "name",
    "Serve the base under another name, or publish the adapter under one.",
)


class Restoration:
    """Turns what the store holds into entries."""

    def __init__(self, store: Store, prover: Prover, base_names: Collection[str]) -> None:
        self._store = store
        self._prover = prover
        self._base_names = base_names

    def read(self) -> dict[str, Entry]:
        """Every name the store knows. Blocks, but reads no weights; leftovers of interrupted work go to the trash."""
        found = self._store.read()
        lost = self._store.missing(found.refs)
        log.info("store_restored", names=len(found.refs), damaged=len(found.damaged), swept=self._sweep(found))
        entries = {name: self._entry(ref, lost.get(name, frozenset())) for name, ref in found.refs.items()}
        for name, reason in found.damaged.items():
            log.error("reference_damaged", adapter=name, reason=reason)
            entries[name] = Entry(Ref(name, next=max(self._store.numbers(name), default=0) + 1))
            entries[name].damage = DAMAGED
        return entries

    def _sweep(self, found: Restored) -> int:
        if not self._store.writable:
            return 0
        try:
            return self._store.sweep(lambda name: None if name in found.damaged else found.refs.get(name, Ref(name)))
        except StoreUnavailable as error:
            # A full disk must not keep what is there from being served.
            log.warning("leftovers_not_swept", reason=error.message)
            return 0

    async def prove_again(self, entries: Iterable[Entry]) -> None:
        """Judge and try what was restored without a valid proof, active versions first."""
        waiting = [
            (served.version.number != entry.ref.active, entry.name, number)
            for entry in entries
            for number, served in entry.served.items()
            if served.state is State.STAGED
        ]
        by_name = {entry.name: entry for entry in entries}
        for _, name, number in sorted(waiting):
            await self._prove(by_name[name], number)

    def _entry(self, ref: Ref, lost: AbstractSet[int]) -> Entry:
        entry = Entry(ref)
        for version in ref.versions:
            served = Served(ref.name, version, self._store.path(ref.name, version.number, version.digest))
            entry.served[version.number] = served
            if ref.name in self._base_names:
                served.fail((TAKEN,))
            elif version.number in lost:
                log.error("version_lost", adapter=served.engine.name)
                served.fail((LOST,))
            elif version.proof == self._prover.stamp:
                served.advance(Event.PROVE)
                served.advance(self._admission(entry, version))
        return entry

    async def _prove(self, entry: Entry, number: int) -> None:
        async with entry.lock:
            served = entry.served.get(number)
            if served is None:
                return
            try:
                await self._try(entry, served)
            except Rejected as rejected:
                served.fail(rejected.problems)
                log.warning("proof_failed", adapter=served.engine.name, codes=codes(rejected.problems))
            except Exception:
                # The others still get their proof; this one stays as it is until the next start.
                log.exception("proof_impossible", adapter=served.engine.name)

    async def _try(self, entry: Entry, served: Served) -> None:
        version = served.version
        await self._prover.judge(served.engine.path, entry.name, allow_base_mismatch=version.allow_base_mismatch)
        await self._prover.try_out(served.engine, entry.name, {})
        ref = entry.ref.reproven(version.number, self._prover.stamp)
        try:
            await asyncio.to_thread(self._store.write, ref)
        except StoreUnavailable as error:
            log.warning("proof_not_kept", adapter=served.engine.name, reason=error.message)
        served.advance(Event.PROVE)
        served.advance(self._admission(entry, version))
        entry.follow(ref)

    @staticmethod
    def _admission(entry: Entry, version: Version) -> Event:
        return Event.PROMOTE if version.number == entry.ref.active else Event.SHELVE
