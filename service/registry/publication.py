"""A registration's way: copied and hashed, judged, stored, loaded, tried, and only then what its name means."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from service.adapter.serving_copy import write_serving_copy
from service.adapter.spec import codes
from service.errors import LoradockError, Rejected, StoreUnavailable
from service.registry.entry import Served
from service.registry.lifecycle import Event
from service.registry.refs import Failure, Offer, Version
from service.registry.staging import Staged, full_disk_said
from service.registry.tasks import to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.adapter.spec import Report
    from service.engine.residency import Residency
    from service.registry.entry import Entry
    from service.registry.observer import Observer
    from service.registry.proof import Prover
    from service.registry.refs import Ref
    from service.registry.store import Store
    from service.registry.switch import Switch

log = structlog.get_logger(__name__)

HEAVY: Final = 2
"""Directories copied or judged at once: each is read whole, and the engine wants the cores."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What came of a registration: the adapter's record, and whether it has a new version."""

    record: dict[str, Any]
    created: bool


class Publisher:
    """Brings versions into service. What fails on the way leaves neither files nor weights behind."""

    def __init__(
        self,
        store: Store,
        residency: Residency,
        prover: Prover,
        switch: Switch,
        observer: Observer,
        clock: Callable[[], float],
        *,
        keep_versions: int,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._residency = residency
        self._prover = prover
        self._switch = switch
        self._observer = observer
        self._clock = clock
        self._keep = keep_versions
        self._max_bytes = max_bytes
        self._heavy = asyncio.Semaphore(HEAVY)

    async def stage(self, source: Path, origin: str, offered_by: str | None, *, allow_base_mismatch: bool) -> Staged:
        """A private copy of `source`. A rejection is noted in it, for `admit`; StoreUnavailable is raised.

        A caller who is cancelled gets the cancellation when nothing reads `source` any more.
        """
        home = await to_end(asyncio.to_thread(self._store.scratch))
        staged = Staged(home, origin, offered_by, allow_base_mismatch=allow_base_mismatch)
        try:
            async with self._heavy:
                await to_end(asyncio.to_thread(staged.copy, source, self._max_bytes))
        except Rejected as rejected:
            staged.rejection = rejected
        except BaseException:
            await self._discard(staged)
            raise
        return staged

    async def admit(self, entry: Entry, staged: Staged) -> Publication:
        """Make what is staged the active version, unless it is already. Raises Rejected with every problem."""
        try:
            async with entry.lock:
                created = not self._is_active(entry, staged)
                await (self._bring_in(entry, staged) if created else self._settle(entry, staged))
                return Publication(entry.record(self._residency.where), created)
        finally:
            await self._discard(staged)

    @staticmethod
    def _is_active(entry: Entry, staged: Staged) -> bool:
        active = entry.active
        return bool(staged.digest and active and active.servable and active.version.digest == staged.digest)

    async def _settle(self, entry: Entry, staged: Staged) -> None:
        if (ref := self._offered(entry.ref, staged)) != entry.ref:
            await self._switch.move(entry, ref)

    async def _bring_in(self, entry: Entry, staged: Staged) -> None:
        with self._counted(staged):
            try:
                served = await self._prove(entry, staged)
            except Rejected as rejected:
                await self._refuse(entry, staged, rejected)
                raise
            await self._activate(entry, served, staged)

    async def _prove(self, entry: Entry, staged: Staged) -> Served:
        if staged.rejection:
            raise staged.rejection
        async with self._heavy:
            with staged.timed("inspect"):
                report = await self._prover.judge(
                    staged.content, entry.name, allow_base_mismatch=staged.allow_base_mismatch
                )
            number, entry.ref = entry.ref.next, entry.ref.burn()
            with staged.timed("commit"):
                version, path = await to_end(asyncio.to_thread(self._commit, entry.name, number, staged, report))
        served = Served(entry.name, version, path)
        try:
            warnings = await self._prover.try_out(served.engine, entry.name, staged.took)
        except BaseException:
            await self._withdraw(entry.name, served)
            raise
        served.version = replace(version, warnings=(*version.warnings, *warnings))
        served.advance(Event.PROVE)
        return served

    def _commit(self, name: str, number: int, staged: Staged, report: Report) -> tuple[Version, Path]:
        with full_disk_said():
            copy = write_serving_copy(staged.content, staged.serving, self._prover.base, report, self._prover.dtype)
        version = Version(
            number=number,
            digest=staged.digest,
            rank=report.rank,
            bytes=report.bytes,
            created=self._clock(),
            modules=copy.modules,
            proof=self._prover.stamp,
            base=report.base,
            source=staged.origin,
            stop_token_ids=tuple(copy.stop_token_ids),
            strength=report.strength,
            warnings=(*staged.warnings, *report.warnings),
            allow_base_mismatch=staged.allow_base_mismatch,
        )
        return version, self._store.commit(staged.serving, name, number, staged.digest)

    async def _activate(self, entry: Entry, served: Served, staged: Staged) -> None:
        entry.served[served.version.number] = served
        ref = self._offered(entry.ref.publish(served.version, self._keep), staged)
        try:
            with staged.timed("flip"):
                await self._switch.move(entry, ref)
        except BaseException:
            del entry.served[served.version.number]
            await self._withdraw(entry.name, served)
            raise
        log.info("adapter_published", adapter=served.engine.name, digest=served.version.digest, seconds=staged.took)

    async def _refuse(self, entry: Entry, staged: Staged, rejected: Rejected) -> None:
        log.warning("adapter_rejected", adapter=entry.name, digest=staged.digest, codes=codes(rejected.problems))
        failure = Failure(self._clock(), staged.digest or None, rejected.problems)
        ref = self._offered(entry.ref.fail(failure), staged, refused=True)
        try:
            await self._switch.move(entry, ref)
        except StoreUnavailable as error:
            entry.follow(ref)
            log.warning("rejection_not_kept", adapter=entry.name, reason=error.message)

    def _offered(self, ref: Ref, staged: Staged, *, refused: bool = False) -> Ref:
        if staged.offered_by is None:
            return ref
        conditions = self._prover.conditions(allow_base_mismatch=staged.allow_base_mismatch) if refused else None
        return ref.offered(staged.offered_by, Offer(staged.digest or None, staged.stamp, conditions))

    async def _withdraw(self, name: str, served: Served) -> None:
        version = served.version
        try:
            await self._residency.retire(served.engine.name)
            await to_end(asyncio.to_thread(self._store.abandon, name, version.number, version.digest))
        except LoradockError as error:
            log.warning("withdrawal_incomplete", adapter=served.engine.name, reason=error.message)

    async def _discard(self, staged: Staged) -> None:
        await to_end(asyncio.to_thread(self._store.delete, staged.home))

    @contextmanager
    def _counted(self, staged: Staged) -> Iterator[None]:
        result = "error"
        try:
            yield
            result = "ok"
        except Rejected:
            result = "rejected"
            raise
        finally:
            self._observer.loaded(result, time.perf_counter() - staged.began)
