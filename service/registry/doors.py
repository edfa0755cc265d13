"""Which directories may be registered by naming them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from service.adapter.spec import Problem, ProblemCode
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """A directory that somebody named."""

    directory: Path
    """Without links."""
    origin: str
    """What a record says about it: relative to the adapters directory where it is below it."""
    offered_by: str | None
    """The key of the watched directory, where it is the subdirectory that offers the name."""


class Doors:
    """The adapters directory, and the further directories below which absolute paths are accepted."""

    def __init__(self, adapters_dir: Path | None, prefixes: Sequence[Path] = ()) -> None:
        self._home = adapters_dir.expanduser().absolute() if adapters_dir else None
        self._prefixes = [prefix.expanduser().absolute() for prefix in prefixes]

    def open(self, name: str, path: str) -> Source:
        """The directory `path`, to be registered as `name`. Blocks. Raises Rejected (`path_forbidden`).

        A relative path is below the adapters directory. What leaves every permitted directory, by `..` or by a link,
        and what isn't there, get the same answer: nobody can feel their way around the machine.
        """
        if not 0 < len(path) <= LONGEST_PATH or (self._home is None and not path.startswith("/")):
            _forbid()
        try:
            roots = [root.resolve() for root in (self._home, *self._prefixes) if root]
            found = Path(self._home or "/", path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            _forbid()
        if not found.is_dir() or not any(root in found.parents for root in roots):
            _forbid()
        return Source(found, self._origin(found), self._watched(name, found))

    def _origin(self, found: Path) -> str:
        home = self._home.resolve() if self._home else None
        return str(found.relative_to(home) if home and home in found.parents else found)

    def _watched(self, name: str, found: Path) -> str | None:
        offering = self._home / name if self._home else None
        return str(offering) if offering and offering.resolve() == found else None


def _forbid() -> NoReturn:
    raise Rejected(
        [
            Problem(
                ProblemCode.PATH_FORBIDDEN,
                "There is no such directory below a directory that adapters may be registered from.",
                "path",
                "Name a directory below the adapters directory, relative to it; absolute paths need --adapter-path.",
            )
        ]
    )
