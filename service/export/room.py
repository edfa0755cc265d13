"""Where a result is made: beside its place, unseen, and put there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from service.adapter.content import sync_directory
from service.export.refusal import ExportCode, Undecided, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = "lock"


def check_place(source: Path, out: Path) -> None:
    """Refuse a place that isn't free, or that lies in the source: nothing is ever converted in place."""
    if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
        refuse(
            ExportCode.OUTPUT_EXISTS,
            "The result would lie inside the source, or the source inside the result.",
            out.name,
            "Name a directory elsewhere; the source stays as it is.",
        )
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        refuse(ExportCode.OUTPUT_EXISTS, f"{out.name} exists already.", out.name, "Name a new or an empty directory.")


@contextmanager
def make_room(out: Path) -> Iterator[Path]:
    """An empty directory beside `out`, which is gone when the context ends, however it ends.

    One that a killed run left behind is cleared away by the next run for the same `out`: its lock is free.
    Raises Undecided when nothing can be written there.
    """
    prefix = f".{out.name}.converting-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out.parent, prefix)
        room = Path(mkdtemp(prefix=prefix, dir=out.parent))
    except OSError as error:
        raise Undecided(f"Nothing can be written beside {out.name!r}: {error.strerror}.") from None
    with (room / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            made = room / "made"
            made.mkdir(mode=0o755)
            yield made
        finally:
            shutil.rmtree(room)


def put_in_place(made: Path, out: Path) -> None:
    """Give the finished directory its name, with everything in it on the disk. Raises Refused if `out` was taken."""
    for path in made.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(made)
    try:
        made.rename(out)
    except OSError:
        refuse(ExportCode.OUTPUT_EXISTS, f"{out.name} was made by somebody else meanwhile.", out.name)
    sync_directory(out.parent)


def _sweep(parent: Path, prefix: str) -> None:
    for room in parent.glob(f"{prefix}*"):
        try:
            with (room / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room)
        except OSError:
            continue  # another run is at work in it, or it is just being made
