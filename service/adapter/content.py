"""What counts as an adapter's content: which files, and the digest that tells two contents apart."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from service.adapter.config import CONFIG
from service.adapter.files import CONFIG_LIMIT, TOKENIZER_LIMIT, open_regular, parse_object, too_large
from service.adapter.layout import CONTENT_FILES, WEIGHTS, layout_problems
from service.adapter.tokenizer import TEMPLATE
from service.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 1 << 20
MODE = 0o644
SETS = ("target_modules", "exclude_modules")
"""Lists of the configuration whose order PEFT changes from run to run."""


def copy_content(source: Path, target: Path, *, max_bytes: int) -> str:
    """Copy an adapter's own files, and nothing else, into `target` and return the content's SHA-256 in hex.

    Only regular files are opened and no link is followed; every file and the directory are on disk when it returns.
    The target is made if it isn't there and must not hold any of the files. Raises Rejected when the source is no
    adapter's directory, TooLarge above `max_bytes` in all; the target is the caller's to clear away then.
    """
    _require_adapter(source)
    target.mkdir(exist_ok=True)
    digest = _digest(source, max_bytes, target)
    sync_directory(target)
    return digest


def digest_of(directory: Path, *, max_bytes: int) -> str:
    """The digest `copy_content` would return, without copying. Raises as it does."""
    _require_adapter(directory)
    return _digest(directory, max_bytes, None)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that must not exist yet, readable by all; on disk when the context ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    with os.fdopen(descriptor, "wb") as file:
        # The umask doesn't decide who may read the store.
        os.fchmod(descriptor, MODE)
        yield file
        file.flush()
        os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_config(data: bytes) -> bytes:
    """The configuration in a form that is the same whenever it means the same. What is no JSON stays as it is."""
    try:
        fields = parse_object(data)
    except ValueError:
        return data
    for name in SETS:
        if isinstance(value := fields.get(name), list):
            fields[name] = sorted(value, key=str)
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _require_adapter(directory: Path) -> None:
    if problems := layout_problems(directory):
        raise Rejected(problems)


def _digest(source: Path, max_bytes: int, target: Path | None) -> str:
    whole, left = hashlib.sha256(), max_bytes
    for name in CONTENT_FILES:
        file = open_regular(source, name)
        if file is None:
            continue
        with file:
            digest, size = _pass(file, name, min(left, _limit(name)), target)
        left -= size
        whole.update(f"{name}\0".encode() + digest)
    return whole.hexdigest()


def _limit(name: str) -> int | float:
    if name == WEIGHTS:
        return float("inf")
    return CONFIG_LIMIT if name in {CONFIG, TEMPLATE} else TOKENIZER_LIMIT


def _pass(file: BinaryIO, name: str, limit: float, target: Path | None) -> tuple[bytes, int]:
    """Read a file once: hash it and, if there is a target, copy it. Returns the digest and the bytes it has."""
    if target is None:
        return _hash(_chunks(file, name, limit), name, None)
    with new_file(target / name) as copy:
        return _hash(_chunks(file, name, limit), name, copy)


def _hash(chunks: Iterator[bytes], name: str, copy: BinaryIO | None) -> tuple[bytes, int]:
    digest, size, text = hashlib.sha256(), 0, bytearray()
    for chunk in chunks:
        size += len(chunk)
        if copy is not None:
            copy.write(chunk)
        if name == CONFIG:
            text += chunk
        else:
            digest.update(chunk)
    if name == CONFIG:
        digest.update(canonical_config(bytes(text)))
    return digest.digest(), size


def _chunks(file: BinaryIO, name: str, limit: float) -> Iterator[bytes]:
    size = 0
    while chunk := file.read(CHUNK):
        size += len(chunk)
        if size > limit:
            raise TooLarge([too_large(name, int(limit))])
        yield chunk
