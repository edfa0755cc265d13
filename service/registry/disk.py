"""The few ways in which files below the state directory are written: durable, in one piece, or not at all.

`step` is called with a name before every single write, so that a test can stop the process between any two.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.adapter.content import sync_directory
from service.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def nothing(_step: str) -> None:
    """Called at every write point; in a running service it has nothing to do."""


@contextmanager
def storing() -> Iterator[None]:
    """Say in public words what the file system refused. Raises StoreUnavailable for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(words(error)) from error


def words(error: OSError) -> str:
    """What a client is told about a file system that doesn't play along: no path, no errno."""
    if error.errno in FULL:
        return "The store is full: nothing was changed. Free some space and try again."
    if error.errno in READ_ONLY:
        return "The store can't be written to: nothing was changed."
    return "The store can't be reached at present: nothing was changed."


class Disk:
    """Writes that survive a crash at any point: what is seen afterwards is the old state or the new one."""

    def __init__(self, step: Callable[[str], None] = nothing) -> None:
        self._step = step

    def replace(self, target: Path, content: bytes, scratch: Path) -> None:
        """Make `content` the whole of `target`. `scratch` is a path on the same file system that nobody else uses."""
        try:
            self._step("replace.write")
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                self._step("replace.sync")
                os.fsync(file.fileno())
            self._step("replace.rename")
            scratch.replace(target)
        except OSError:
            # A full disk keeps no torn file: whoever frees space gets all of it.
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
        self._step("replace.sync_parent")
        sync_directory(target.parent)
        self._step("replace.done")

    def move(self, source: Path, target: Path) -> None:
        """Rename a directory; the new name is durable on return. `target` must not exist."""
        self._step("move.rename")
        source.rename(target)
        self._step("move.sync_parent")
        sync_directory(target.parent)
        if source.parent != target.parent:
            self._step("move.sync_source")
            sync_directory(source.parent)
        self._step("move.done")

    def sync_tree(self, root: Path) -> None:
        """Make every file below `root`, and every name, durable."""
        for directory, _, files in os.walk(root):
            for name in files:
                self._step("sync.file")
                _sync(os.path.join(directory, name))  # noqa: PTH118 (os.walk speaks strings)
            self._step("sync.directory")
            sync_directory(Path(directory))

    def sync_names(self, directory: Path) -> None:
        """Make the names in a directory durable."""
        self._step("sync.names")
        sync_directory(directory)

    def make(self, path: Path) -> Path:
        """Make a directory that must not exist yet, for this user alone."""
        self._step("make")
        path.mkdir(mode=0o700)
        return path

    def delete(self, root: Path) -> None:
        """Delete a file or a tree that nothing refers to any more. What is gone already is no error."""
        self._step("delete")
        if root.is_dir() and not root.is_symlink():
            shutil.rmtree(root, ignore_errors=False, onerror=_unless_gone)
        else:
            root.unlink(missing_ok=True)
        self._step("delete.done")


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unless_gone(_function: object, _path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
