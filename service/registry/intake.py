"""An uploaded archive, unpacked by our own hand: every member is judged before a byte of it is written.

Only plain files come out, into new files of a new directory. Whatever could reach elsewhere, grow without bound or
has no business in an adapter ends the whole archive, and nothing of it stays.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, NoReturn, Self

from service.adapter.spec import Problem, ProblemCode
from service.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_MEMBERS: Final = 1000
MOST_HEADERS: Final = 4 * MOST_MEMBERS
"""Of a tar, with those that only carry long names and attributes."""
LARGEST_EXTRA_HEADER: Final = 1 << 16
"""Of the latter; tarfile reads them into memory whole."""
LARGEST_READ: Final = 1 << 20
"""Of a zip's table of contents, which zipfile reads into memory whole."""
LONGEST_NAME: Final = 255
DEEPEST: Final = 8
RATIO: Final = 200
"""Unpacked bytes for a packed one. Weights hardly shrink, a tokenizer's JSON does about tenfold."""
FREE: Final = 16 << 20
"""Bytes that may be unpacked whatever the ratio."""
PADDING: Final = 4 << 20
"""Bytes of a tar that are no content: headers, and what fills the last block of each member."""
KINDS: Final = frozenset(
    {
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.CONTTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
"""Headers of a tar that are read: of files, of folders, and those that carry their names and attributes."""
CHUNK: Final = 1 << 18
GZIP: Final = b"\x1f\x8b"
ZIP: Final = b"PK"
DRIVE: Final = re.compile(r"[A-Za-z]:")
LITTER: Final = re.compile(r"(__MACOSX/|(.*/)?(\._[^/]*|\.DS_Store)$)")
"""What the Finder adds to every archive; left out without a word."""


def accept_name(filename: str) -> str:
    """The name of an uploaded file, when it is nothing but a name. Raises Rejected (`path_forbidden`)."""
    if "/" in filename or not _parts(filename):
        _forbid(f"{_shown(filename)} is not a plain file name.", filename)
    return filename


def unpack(archive: Path, target: Path, *, max_bytes: int) -> None:
    """Unpack a .tar, .tar.gz or .zip into the directory `target`, which is made, or empty; blocks.

    Where everything is in one folder, the folder itself is left out. Raises Rejected for what is not to be unpacked,
    TooLarge above `max_bytes` or an unlikely ratio, OSError of the disk; `target` doesn't exist then.
    """
    target.mkdir(exist_ok=True)
    try:
        packed = archive.stat().st_size
        writer = _Writer(target, max_bytes)
        with _Careful(archive) as file, _broken_said():
            magic = file.read(4)
            file.seek(0)
            if magic.startswith(ZIP):
                _unzip(file, writer, packed)
            elif magic.startswith(GZIP):
                _untar(
                    _Metered(gzip.GzipFile(fileobj=file), min(max_bytes + PADDING, max(FREE, packed * RATIO))), writer
                )
            else:
                _untar(_Metered(file, max_bytes + PADDING), writer)
        if not writer.count:
            _forbid("The archive holds no file.")
        _look_through(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


class _Writer:
    """Writes members below one directory, within the limits."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.count = 0
        self._root = root
        self._left = max_bytes
        self._seen: set[str] = set()

    def limit(self, max_bytes: int) -> None:
        """Accept no more than this in all."""
        self._left = min(self._left, max_bytes)

    def add(self, name: str, content: IO[bytes]) -> None:
        """Write one member. Raises Rejected, TooLarge."""
        parts = _parts(name)
        if parts is None:
            _forbid(f"The archive's member {_shown(name)} would leave the directory or has no proper name.", name)
        if LITTER.match("/".join(parts)):
            return
        self.count += 1
        if self.count > MOST_MEMBERS:
            raise TooLarge([_problem(ProblemCode.TOO_LARGE, f"The archive has more than {MOST_MEMBERS} files.")])
        if (folded := "/".join(parts).casefold()) in self._seen:
            _forbid(f"The archive holds {_shown(name)} twice.", name)
        self._seen.add(folded)
        path = self._root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                self._copy(content, file)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            _forbid(f"The archive holds {_shown(name)} twice, as a file and as a folder.", name)

    def _copy(self, content: IO[bytes], file: IO[bytes]) -> None:
        while chunk := content.read(CHUNK):
            self._left -= len(chunk)
            if self._left < 0:
                _too_large()
            file.write(chunk)


class _Careful(io.FileIO):
    """A file that is never read in large pieces, whatever its own tables say."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file, up to LARGEST_READ at once."""
        left = max(self._size - self.tell(), 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > LARGEST_READ:
            raise TooLarge([_problem(ProblemCode.TOO_LARGE, "The archive's table of contents is too large.")])
        return super().read(size) or b""


class _Metered(io.RawIOBase):
    """A stream that ends in TooLarge when more comes out of it than it may."""

    def __init__(self, stream: IO[bytes] | io.FileIO | gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        """As any stream."""
        data = self._stream.read(min(size, CHUNK) if size >= 0 else CHUNK) or b""
        self._left -= len(data)
        if self._left < 0:
            _too_large()
        return data


def _unzip(file: _Careful, writer: _Writer, packed: int) -> None:
    writer.limit(max(FREE, packed * RATIO))
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                _forbid("The archive is encrypted.")
            if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                _forbid("The archive is compressed in a way that is not accepted.")
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                _refuse_kind(member.filename)
            if not member.is_dir():
                with archive.open(member) as content:
                    writer.add(member.orig_filename, content)


class _Header(tarfile.TarInfo):
    """A tar's header, judged before tarfile acts on it. Subclassed for each archive, to count its own."""

    count = 0
    ended = False
    """Whether the empty block was seen that ends an archive: without it some members may be missing."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As documented for TarInfo."""
        cls.ended = bool(buf) and not any(buf)
        cls.count += 1
        header = super().frombuf(buf, encoding, errors)
        content = header.isreg() or header.isdir()
        if cls.count > MOST_HEADERS or (not content and header.size > LARGEST_EXTRA_HEADER):
            _too_large()
        if header.type not in KINDS:
            _refuse_kind(header.name)
        return header


def _untar(stream: _Metered, writer: _Writer) -> None:
    header: type[_Header] = type("Header", (_Header,), {})
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=header, bufsize=tarfile.RECORDSIZE) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content:
                writer.add(member.name, content)
            elif not member.isdir():
                _refuse_kind(member.name)
    while stream.read(CHUNK):
        pass
    if not header.ended:
        raise EOFError


def _parts(name: str) -> list[str] | None:
    """A member's name in its parts; None when it is not a relative path to somewhere below."""
    if not name.isprintable() or "\\" in name or name.startswith("/") or DRIVE.match(name):
        return None
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if not 0 < len(parts) <= DEEPEST or ".." in parts or any(len(part.encode()) > LONGEST_NAME for part in parts):
        return None
    return parts


def _look_through(target: Path) -> None:
    """Take a single folder's content up to where the folder was."""
    for _ in range(DEEPEST):
        inside = list(target.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            return
        folder = target.with_name(f"{target.name}.folder")
        inside[0].rename(folder)
        target.rmdir()
        folder.rename(target)


@contextmanager
def _broken_said() -> Iterator[None]:
    """Say in a client's words what the readers of archives raise."""
    try:
        yield
    except (EOFError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        raise Rejected(
            [_problem(ProblemCode.WEIGHTS_INCOMPLETE, "The archive is not a whole and sound .tar, .tar.gz or .zip.")]
        ) from error
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise Rejected([_problem(ProblemCode.WEIGHTS_INVALID, "The archive can't be read.")]) from error


def _too_large() -> NoReturn:
    raise TooLarge([_problem(ProblemCode.TOO_LARGE, "The archive holds more than is accepted.")])


def _refuse_kind(name: str) -> NoReturn:
    _forbid(f"The archive's member {_shown(name)} is a link, a device or something else than a file.", name)


def _forbid(message: str, name: str = "") -> NoReturn:
    raise Rejected([_problem(ProblemCode.PATH_FORBIDDEN, message, _shown(name) if name else "archive")])


def _problem(code: ProblemCode, message: str, where: str = "archive") -> Problem:
    return Problem(code, message, where, "Pack the adapter's own files: tar -czf adapter.tar.gz -C DIR .")


def _shown(name: str) -> str:
    return repr(name[:100])
