"""What is on its way into the registry: a private copy in the store's staging, and how it came."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.adapter.content import copy_content
from service.adapter.layout import layout_warnings
from service.errors import StoreUnavailable
from service.registry.disk import FULL, words
from service.registry.stamp import stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.adapter.spec import Problem
    from service.errors import Rejected


@dataclass(slots=True)
class Staged:
    """See the module. Whoever makes it deletes `home`."""

    home: Path
    origin: str
    """What the record says about where it came from."""
    offered_by: str | None = None
    """The key of the watched directory it came from."""
    allow_base_mismatch: bool = False
    digest: str = ""
    """Of the content; empty until it has been copied."""
    stamp: str = ""
    """Of the watched directory, taken before it was read."""
    warnings: list[Problem] = field(default_factory=list)
    """Of the directory it was copied from: what was left behind there."""
    rejection: Rejected | None = None
    """Why it could not even be copied."""
    began: float = field(default_factory=time.perf_counter)
    took: dict[str, float] = field(default_factory=dict)
    """Phase → seconds."""

    @property
    def content(self) -> Path:
        """The copy of what was received."""
        return self.home / "content"

    @property
    def serving(self) -> Path:
        """What the engine will read."""
        return self.home / "serving"

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note how long a phase takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.took[phase] = round(time.perf_counter() - began, 4)

    def copy(self, source: Path, max_bytes: int) -> None:
        """Copy and hash `source` in one pass. Blocks. Raises Rejected, TooLarge, StoreUnavailable."""
        with self.timed("copy"), full_disk_said():
            if self.offered_by is not None:
                # Before the content is read: a file that changes meanwhile makes the stamp differ from the next one.
                with suppress(OSError):
                    self.stamp = stamp_of(source)
            self.digest = copy_content(source, self.content, max_bytes=max_bytes)
            self.warnings = layout_warnings(source)


@contextmanager
def full_disk_said() -> Iterator[None]:
    """Raise StoreUnavailable where the disk is full; any other OSError passes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreUnavailable(words(error)) from error
        raise
