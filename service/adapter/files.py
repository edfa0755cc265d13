"""Reading what someone else wrote: regular files only, never through a link, never more than was asked for."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from service.adapter.spec import Problem, ProblemCode
from service.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_LIMIT = 1 << 20
"""Bytes of an adapter_config.json or a chat template; real ones have a few thousand."""
TOKENIZER_LIMIT = 64 << 20
"""Bytes of one tokenizer file; the largest vocabularies in use take about half of it."""


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_regular(directory: Path, name: str, *, follow: bool = False) -> BinaryIO | None:
    """The file `name` of `directory`, open for reading, or None when there is none.

    Raises Rejected (`path_forbidden`) for a link, unless `follow`, and for a pipe, a device, a directory or a file
    that may not be read. Nothing that isn't a regular file is ever waited for.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(directory / name, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Rejected([_forbidden(name, error)]) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Rejected([_forbidden(name)])
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bytes(directory: Path, name: str, limit: int, *, follow: bool = False) -> bytes | None:
    """The whole file, or None when there is none. Raises TooLarge above `limit` bytes, Rejected as `open_regular`."""
    file = open_regular(directory, name, follow=follow)
    if file is None:
        return None
    with file:
        if os.fstat(file.fileno()).st_size > limit:
            raise TooLarge([too_large(name, limit)])
        # A file may grow between the two calls: the limit holds for what is read.
        return os.pread(file.fileno(), limit, 0)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object as strict JSON has it. Raises ValueError for anything else, however deep or long it is."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        if _SURROGATE.search(data):
            # Half a character can be read and never be sent again.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 (one error for all that is wrong)
    return value


def too_large(name: str, limit: int) -> Problem:
    """The problem of a file, or of all files together, that exceeds `limit` bytes."""
    return Problem(
        ProblemCode.TOO_LARGE,
        f"{name} is larger than the {limit:,} bytes that are accepted.",
        name,
        "Check that it is the file that save_pretrained wrote; a whole model is served as its own base instead.",
    )


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _forbidden(name: str, error: OSError | None = None) -> Problem:
    if error is not None and error.errno in {errno.EACCES, errno.EPERM}:
        return Problem(
            ProblemCode.PATH_FORBIDDEN,
            f"{name} may not be read by the service's user.",
            name,
            f"Make it readable: chmod 644 {name} (newer safetensors versions save with mode 600).",
        )
    return Problem(
        ProblemCode.PATH_FORBIDDEN,
        f"{name} is not a regular file; links, pipes, devices and directories are not followed.",
        name,
        "Copy the directory with its files in it: cp -rL SOURCE TARGET.",
    )
