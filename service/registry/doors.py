"""Which directories may be registered by naming them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from service.adapter.spec import Problem, ProblemCode
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_PATH = 4096


class Doors:
    """The adapters directory, and the further directories below which absolute paths are accepted."""

    def __init__(self, adapters_dir: Path | None, prefixes: Sequence[Path] = ()) -> None:
        self.adapters_dir = adapters_dir.expanduser().absolute() if adapters_dir else None
        self._prefixes = [prefix.expanduser().absolute() for prefix in prefixes]

    def open(self, path: str) -> Path:
        """The directory a client named, links resolved. Blocks. Raises Rejected (`path_forbidden`).

        A relative path is below the adapters directory. What leaves every permitted directory, by `..` or by a link,
        and what isn't there, get the same answer: nobody can feel their way around the machine.
        """
        if not 0 < len(path) <= LONGEST_PATH or (self.adapters_dir is None and not Path(path).is_absolute()):
            _forbid()
        roots = [root for root in (self.adapters_dir, *self._prefixes) if root]
        try:
            found = Path(self.adapters_dir or "/", path).resolve(strict=True)
            permitted = any(root.resolve() in found.parents for root in roots)
        except (OSError, RuntimeError, ValueError):
            _forbid()
        if not permitted or not found.is_dir():
            _forbid()
        return found

    def watched(self, name: str, directory: Path) -> str | None:
        """The key of a watched directory: set when `directory` is the subdirectory that offers `name`."""
        if self.adapters_dir is None or directory != (self.adapters_dir / name).resolve():
            return None
        return str(self.adapters_dir / name)

    def origin(self, directory: Path) -> str:
        """What a record says about a directory: relative to the adapters directory where it is below it."""
        home = self.adapters_dir.resolve() if self.adapters_dir else None
        return str(directory.relative_to(home) if home and home in directory.parents else directory)


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
