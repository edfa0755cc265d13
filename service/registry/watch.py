"""The adapters directory, scanned at start and watched afterwards: what is put there is published under its name.

A directory is published when it is whole, has been left alone for the settle time, and holds something else than it
last offered; never because it differs from what is active. So a rollback or a removal stays. The file system's
notifications only say where to look; what is done follows from looking, and where there are none, from looking often.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from watchfiles import awatch

from service.adapter.content import digest_of
from service.adapter.layout import WEIGHTS
from service.adapter.safetensors_header import is_whole
from service.adapter.spec import name_problem
from service.errors import LoradockError, NameTaken, Rejected
from service.registry.filesystem import is_remote
from service.registry.settling import Settling
from service.registry.stamp import stamp_of
from service.registry.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from service.registry.catalog import Catalog

log = structlog.get_logger(__name__)

AT_ONCE: Final = 4
"""Directories considered at the same time."""
RESCAN: Final = 30.0
"""Seconds after which everything is looked at even though nothing was notified: notifications get lost."""
POLL: Final = 3.0
"""The same where there are no notifications."""
STEP_MS: Final = 250
"""How often the notifying thread looks up; at watchfiles' own 50 ms it takes 3 % of what the streams' tokens do."""
BUSY: Final = 1.0
"""Seconds until a directory is looked at again that changed while it was being published."""
RETRY: Final = 30.0
"""Seconds until a directory is tried again that couldn't be: the store was full, the engine gone."""


class Watcher:
    """See the module. `scanned` is set when the first scan is done, and at once where there is nothing to scan.

    settle: seconds a directory must be left alone. allow_base_mismatch: names that may name another base. retire: stop
    serving what a directory offered when the directory is gone. polling: look often instead of being notified; None
    decides by the file system.
    """

    def __init__(
        self,
        catalog: Catalog,
        adapters_dir: Path | None,
        *,
        watch: bool = True,
        settle: float = 1.0,
        allow_base_mismatch: Collection[str] = (),
        retire: bool = False,
        polling: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scanned = asyncio.Event()
        self._catalog = catalog
        self._home = adapters_dir.expanduser().absolute() if adapters_dir else None
        self._watch = watch
        self._mismatch = frozenset(allow_base_mismatch)
        self._retire = retire
        self._polling = polling
        self._clock = clock
        self._settling = Settling(settle)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._touched: set[str] = set()
        self._notice = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._work = Tasks()
        self._busy: set[str] = set()
        """Names that changed and are being considered: one that takes its time holds up itself only."""

    async def start(self) -> None:
        """Begin the first scan, and watch after it; `scanned` tells when the scan is done."""
        if self._home is None:
            self.scanned.set()
        else:
            self._tasks = [asyncio.create_task(self._run(self._home), name="watch adapters")]

    async def stop(self) -> None:
        """Stop looking. What is being published is carried through by the catalog."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._work.cancel()

    async def _run(self, home: Path) -> None:
        if self._watch and not await self._must_poll(home):
            # Before the scan: what changes during it is noticed.
            self._tasks.append(asyncio.create_task(self._listen(home), name="listen for changes"))
        else:
            self._polling = True
        found = await asyncio.to_thread(_look, home, None)
        async with asyncio.TaskGroup() as group:
            for name, stamp in found.items():
                self._settling.tried(name, stamp)
                group.create_task(self._consider(home, name, stamp))
        self.scanned.set()
        log.info("adapters_scanned", directories=len(found))
        if self._watch:
            gone = await asyncio.to_thread(_gone, home, self._catalog.offering(home) - set(found))
            self._settling.see(dict.fromkeys(gone), self._clock())
            await self._go_on(home)

    async def _go_on(self, home: Path) -> None:
        looked = self._clock()
        while True:
            everything = await self._something_to_do(looked)
            if everything:
                looked = self._clock()
            try:
                await self._look_again(home, everything=everything)
            except Exception:
                log.exception("watching_failed")
                await asyncio.sleep(POLL)

    async def _must_poll(self, home: Path) -> bool:
        return self._polling if self._polling is not None else await asyncio.to_thread(is_remote, home)

    async def _listen(self, home: Path) -> None:
        try:
            async for changes in awatch(home, watch_filter=None, step=STEP_MS):
                inside = (Path(path).relative_to(home).parts for _, path in changes)
                self._touched |= {parts[0] for parts in inside if parts}
                self._notice.set()
        except (OSError, RuntimeError) as error:
            log.warning("not_notified_of_changes", reason=str(error))
        self._polling = True
        self._notice.set()

    async def _something_to_do(self, looked: float) -> bool:
        """Wait for a notice or until something is due; whether it is time to look at everything."""
        rescan = looked + (POLL if self._polling else RESCAN)
        due = self._settling.next_due()
        patience = min(rescan, rescan if due is None else due) - self._clock()
        with suppress(TimeoutError):
            # Not wait_for: Python 3.11's loses a cancellation that comes together with the notice.
            async with asyncio.timeout(max(patience, 0)):
                await self._notice.wait()
        return self._clock() >= rescan

    async def _look_again(self, home: Path, *, everything: bool) -> None:
        self._notice.clear()
        touched, self._touched = self._touched | self._settling.waiting, set()
        stamps = await asyncio.to_thread(_look, home, None if everything else touched)
        gone = await asyncio.to_thread(
            _gone, home, (self._settling.known if everything else touched & self._settling.known) - set(stamps)
        )
        now = self._clock()
        self._settling.see({**stamps, **dict.fromkeys(gone)}, now)
        due = self._settling.due(now)
        unsure = [name for name, waiting in due.items() if waiting.stamp is not None and not waiting.last_call]
        torn = await asyncio.to_thread(_torn, home, unsure)
        for name in torn:
            self._settling.incomplete(name)
        for name in due.keys() - torn:
            self._begin(home, name, due[name].stamp)

    def _begin(self, home: Path, name: str, stamp: str | None) -> None:
        if name in self._busy:
            self._settling.postpone(name, stamp, self._clock() + BUSY)
            return
        self._busy.add(name)
        if stamp is None:
            self._settling.forget(name)
            self._work.spawn(self._let_go(home, name), f"let go of {name}")
        else:
            self._settling.tried(name, stamp)
            self._work.spawn(self._consider(home, name, stamp), f"consider {name}")

    async def _consider(self, home: Path, name: str, stamp: str) -> None:
        async with self._slots:
            with self._minding(name, stamp):
                await self._offer(home, name, stamp)

    async def _let_go(self, home: Path, name: str) -> None:
        with self._minding(name, None):
            await self._catalog.vanished(name, str(home / name), retire=self._retire)

    @contextmanager
    def _minding(self, name: str, stamp: str | None) -> Iterator[None]:
        """Keep one adapter's trouble from being the others', and try it again where that may help."""
        try:
            yield
        except NameTaken as taken:
            self._catalog.refuse(name, taken.problems)
        except Rejected:
            pass  # the catalog lists it, with its problems
        except Exception as error:
            reason = error.message if isinstance(error, LoradockError) else None
            log.warning("adapter_not_considered", adapter=name, reason=reason, exc_info=reason is None)
            self._settling.postpone(name, stamp, self._clock() + RETRY)
        finally:
            self._busy.discard(name)

    async def _offer(self, home: Path, name: str, stamp: str) -> None:
        if problem := name_problem(name):
            self._catalog.refuse(name, [problem])
            return
        key, lax = str(home / name), name in self._mismatch
        before = self._catalog.offer(name, key, allow_base_mismatch=lax)
        if before and before.stamp == stamp:
            return
        try:
            source = await asyncio.to_thread(self._catalog.doors.open, name, name)
        except Rejected as rejected:
            self._catalog.refuse(name, rejected.problems)
            return
        if before and before.digest and await asyncio.to_thread(self._digest, source.directory) == before.digest:
            await self._catalog.restamp(name, key, stamp)
            return
        await self._catalog.publish(name, source.directory, offered_by=key, allow_base_mismatch=lax)

    def _digest(self, source: Path) -> str | None:
        try:
            return digest_of(source, max_bytes=self._catalog.max_bytes)
        except Rejected:
            return None


def _look(home: Path, names: Iterable[str] | None) -> dict[str, str]:
    """Subdirectory → stamp, for these names or for all. Names that begin with a dot are left alone."""
    stamps = {}
    with suppress(OSError):
        for name in [path.name for path in home.iterdir()] if names is None else names:
            with suppress(OSError):
                if not name.startswith(".") and (home / name).is_dir():
                    stamps[name] = stamp_of(home / name)
    return stamps


def _gone(home: Path, names: Collection[str]) -> set[str]:
    """Those that are no longer there. Where `home` itself can't be seen nothing is: it may be mounted again."""
    return {name for name in names if not (home / name).exists()} if names and home.is_dir() else set()


def _torn(home: Path, names: Iterable[str]) -> set[str]:
    """Those whose weights are not whole."""
    return {name for name in names if not is_whole(home / name / WEIGHTS)}
