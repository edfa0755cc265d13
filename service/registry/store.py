"""The registry on disk: plain files, no database, and no state in which a crash could leave half of something.

    adapters/<name>/<N>-<digest12>/   one version: what the engine reads; never changed once it has its name
    refs/<name>.json                  what the name has and points at (`refs.Ref`); replaced in one piece
    staging/                          what is being received and judged; swept at every start
    trash/                            what is being deleted; emptied at every start
    store.json, lock                  the format's number; who writes

A version's directory is complete and durable before it gets its name, and has its name before a reference mentions
it; a reference forgets it before it loses its name. So whatever no reference mentions is a leftover.
"""

from __future__ import annotations

import errno
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from uuid import uuid4

import structlog

from service.adapter.spec import NAME
from service.errors import ConfigurationError, StoreUnavailable
from service.registry.disk import READ_ONLY, Disk, nothing, storing, words
from service.registry.lock import WriterLock
from service.registry.refs import FORMAT, Ref, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

log = structlog.get_logger(__name__)

SHORT_DIGEST: Final = 12
DIRECTORIES: Final = ("adapters", "refs", "staging", "trash")
VERSION_DIRECTORY: Final = re.compile(r"([1-9][0-9]{0,6})-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a store was found to hold."""

    refs: Mapping[str, Ref]
    damaged: Mapping[str, str]
    """Names whose reference file can't be understood, and why: for the log and for an operator."""


class Store:
    """See the module. Every method blocks; call them in a thread. All raise StoreUnavailable when the disk refuses."""

    def __init__(self, root: Path, step: Callable[[str], None] = nothing) -> None:
        """For reading, beside the one that writes; `open` makes the one that writes."""
        self.root = root.expanduser().absolute()
        self.writable = False
        self._disk = Disk(step)
        self._lock: WriterLock | None = None

    @classmethod
    def open(cls, root: Path, step: Callable[[str], None] = nothing) -> Store:
        """The one writer of a store, made where there is none.

        Where an existing one can't be written, it is opened for reading all the same: what it holds can be served.
        Raises ConfigurationError when another process writes it, a newer loradock wrote it, or it can't be used.
        """
        store = cls(root, step)
        try:
            store._lay_out()
        except OSError as error:
            store.close()
            if error.errno not in READ_ONLY or not (store.root / "refs").is_dir():
                raise ConfigurationError(
                    f"The state directory {store.root} can't be used: {error.strerror}."
                ) from error
            store._check_format()
            log.warning("store_is_read_only", reason=error.strerror)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Self:
        """The store itself; it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let another process write."""
        self.close()

    def close(self) -> None:
        """Let another process write."""
        self.writable = False
        if self._lock:
            self._lock.release()
            self._lock = None

    def read(self) -> Restored:
        """Every reference, without touching a single weight. One that is damaged doesn't hide the others."""
        refs: dict[str, Ref] = {}
        damaged: dict[str, str] = {}
        for path in self._paths("refs"):
            name = _name(path.name.removesuffix(".json"))
            if name is None or path.suffix != ".json":
                log.warning("store_holds_a_strange_file", file=path.name)
                continue
            try:
                ref = decode(path.read_bytes())
                if ref.name != name:
                    raise ValueError(f"it speaks of {ref.name!r}")  # noqa: TRY301 (one way out for every damage)
                refs[name] = ref
            except (ValueError, OSError) as error:
                damaged[name] = str(error)
        return Restored(refs, damaged)

    def missing(self, refs: Mapping[str, Ref]) -> dict[str, set[int]]:
        """Versions that references mention and the disk has lost, by name."""
        lost: dict[str, set[int]] = {}
        for name, ref in refs.items():
            there = {path.name for path in self._paths("adapters", _file(name))}
            if gone := {v.number for v in ref.versions if _directory(v.number, v.digest) not in there}:
                lost[name] = gone
        return lost

    def sweep(self, known: Callable[[str], Ref | None]) -> int:
        """Put what no reference mentions into the trash; returns how many directories that were.

        `known` answers with a name's reference, None for a name to leave alone. Only at start: later, a version may
        be there before its reference says so.
        """
        leftovers = self._paths("staging")
        leftovers += [path for home in self._paths("adapters") for path in self._orphans(home, known)]
        with storing():
            for path in leftovers:
                self._disk.move(path, self._fresh("trash"))
        return len(leftovers)

    def empty_trash(self) -> None:
        """Delete what was put there."""
        if self.writable:
            for path in self._paths("trash"):
                self.delete(path)

    def scratch(self) -> Path:
        """A fresh empty directory in staging; `delete` it, or the next start will."""
        with storing():
            self._must_write()
            return self._disk.make(self._fresh("staging"))

    def delete(self, path: Path) -> None:
        """Delete a directory of `scratch`. A disk that refuses is only logged: the next start tries again."""
        try:
            self._disk.delete(path)
        except OSError as error:
            log.warning("store_could_not_delete", reason=error.strerror)

    def path(self, name: str, number: int, digest: str) -> Path:
        """Where a version's files are."""
        return self.root / "adapters" / _file(name) / _directory(number, digest)

    def commit(self, staged: Path, name: str, number: int, digest: str) -> Path:
        """Give a finished directory of staging its place; returns it. Nothing may change it from now on."""
        target = self.path(name, number, digest)
        with storing():
            self._must_write()
            if not target.parent.is_dir():
                with suppress(FileExistsError):
                    self._disk.make(target.parent)
                self._disk.sync_names(target.parent.parent)
            self._disk.sync_tree(staged)
            if target.exists():
                # A leftover that the start could not sweep: nothing refers to a number that is only now given.
                self.discard(target)
            self._disk.move(staged, target)
        return target

    def write(self, ref: Ref) -> None:
        """Make this the name's reference, durably. When it raises, the old one or this one is there, whole."""
        with storing():
            self._must_write()
            self._disk.replace(self.root / "refs" / f"{_file(ref.name)}.json", encode(ref), self._fresh("staging"))

    def discard(self, path: Path) -> None:
        """Delete a version's directory: it loses its name first. Nothing may refer to it any more."""
        with storing():
            self._must_write()
            if path.exists():
                trash = self._fresh("trash")
                self._disk.move(path, trash)
                self.delete(trash)

    def abandon(self, name: str, number: int, digest: str) -> None:
        """Discard a version that was never published, unless the reference on disk mentions it all the same.

        That happens when the disk failed after the reference was renamed: then the files must stay with it.
        """
        try:
            ref = decode((self.root / "refs" / f"{_file(name)}.json").read_bytes())
            mentioned = any(version.number == number for version in ref.versions)
        except FileNotFoundError:
            mentioned = False
        except (OSError, ValueError):
            mentioned = True
        if not mentioned:
            self.discard(self.path(name, number, digest))

    def numbers(self, name: str) -> set[int]:
        """Version numbers whose directories are there, whatever the reference says."""
        matches = (VERSION_DIRECTORY.fullmatch(path.name) for path in self._paths("adapters", _file(name)))
        return {int(match[1]) for match in matches if match}

    def _orphans(self, home: Path, known: Callable[[str], Ref | None]) -> Iterator[Path]:
        name = _name(home.name)
        ref = known(name) if name else None
        if ref is None:
            return
        mentioned = {_directory(version.number, version.digest) for version in ref.versions}
        yield from (path for path in self._paths("adapters", home.name) if path.name not in mentioned)

    def _lay_out(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = WriterLock(self.root / "lock")
        self._check_format()
        for name in DIRECTORIES:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        self.writable = True

    def _check_format(self) -> None:
        path = self.root / "store.json"
        try:
            found = json.loads(path.read_bytes())["format"]
        except FileNotFoundError:
            if any((self.root / name).exists() for name in ("adapters", "refs")):
                raise ConfigurationError(f"{self.root} is not a state directory of loradock.") from None
            self._disk.replace(path, json.dumps({"format": FORMAT}).encode(), self.root / "store.json.new")
            return
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{path} can't be read: is {self.root} a state directory?") from None
        if not isinstance(found, int) or found > FORMAT:
            raise ConfigurationError(
                f"The state directory {self.root} was written by a newer loradock (format {found}, this one knows "
                f"{FORMAT}). Use that one, or another --state-dir."
            )

    def _fresh(self, room: str) -> Path:
        return self.root / room / uuid4().hex

    def _paths(self, *below: str) -> list[Path]:
        try:
            return sorted(self.root.joinpath(*below).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _must_write(self) -> None:
        if not self.writable:
            raise StoreUnavailable(words(OSError(errno.EROFS, "")))


def _file(name: str) -> str:
    """A name as a file name that differs from every other also where case doesn't count, or a final dot is dropped.

    `~` can't occur in a name: an upper-case letter becomes `~` and the lower-case one, a final dot `.~`.
    """
    escaped = re.sub(r"[A-Z]", lambda match: f"~{match[0].lower()}", name)
    return f"{escaped}~" if escaped.endswith(".") else escaped


def _name(file: str) -> str | None:
    """The name that `_file` made this of; None when it made it of none."""
    name = re.sub(r"~([a-z])", lambda match: match[1].upper(), file.removesuffix("~"))
    return name if NAME.fullmatch(name) and _file(name) == file else None


def _directory(number: int, digest: str) -> str:
    return f"{number}-{digest[:SHORT_DIGEST]}"
