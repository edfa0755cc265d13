"""The safetensors format, read by its header: what a file holds and whether it holds all of it.

The layout is eight bytes of header length (little-endian), the header as JSON (tensor name → dtype, shape and offsets
into the data) and the data without holes. Everything is checked before a tensor is read, so a hostile file costs a
bounded header and nothing else. Tensors are read with positioned reads and not through a memory map: a file that is
cut short under a map kills the whole process.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import ml_dtypes
import numpy as np

from service.adapter.files import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HEADER_LIMIT = 32 << 20
"""Bytes of a header: three times what the largest mixture of experts takes, and little enough to be read at once."""
TENSOR_LIMIT = 1 << 18
"""Tensors of one file; the largest mixture-of-experts models have about 100,000 in all."""
NAME_LIMIT = 512
DIMENSION_LIMIT = 8
LENGTH_BYTES = 8

BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


class InvalidHeader(ValueError):
    """Not a sound safetensors file; `incomplete` when bytes are missing at its end."""

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its type in safetensors' words, its shape and where its bytes stand in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds, in the order of its bytes."""

    tensors: Mapping[str, TensorEntry]
    size: int
    """Length of the whole file in bytes."""
    digest: str
    """SHA-256 of the header's own bytes."""


def read_header(file: BinaryIO) -> Header:
    """Read and check the header of an open file. Raises InvalidHeader."""
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    length = _header_length(os.pread(descriptor, LENGTH_BYTES + 1, 0), size)
    raw = os.pread(descriptor, length, LENGTH_BYTES)
    if len(raw) < length:
        raise InvalidHeader("the file ends inside its header", incomplete=True)
    try:
        table = parse_object(raw)
    except ValueError as error:
        raise InvalidHeader(f"the header can't be read: {str(error)[:200]}") from None
    _check_metadata(table.pop("__metadata__", {}))
    if len(table) > TENSOR_LIMIT:
        raise InvalidHeader(f"it lists {len(table):,} tensors; {TENSOR_LIMIT:,} are accepted")
    entries = _in_file_order(table, origin=LENGTH_BYTES + length)
    _check_extent(entries, origin=LENGTH_BYTES + length, size=size)
    return Header(MappingProxyType(entries), size, hashlib.sha256(raw).hexdigest())


def is_whole(path: Path) -> bool:
    """Whether no more bytes are to come: the end that the header announces is the file's end.

    A missing file isn't whole. One that is no safetensors file at all is as whole as it will ever be: waiting would
    not mend it, and inspection says what it is.
    """
    try:
        with path.open("rb", buffering=0) as file:
            read_header(file)
    except InvalidHeader as error:
        return not error.incomplete
    except OSError:
        return False
    return True


class TensorFile:
    """An open safetensors file whose tensors are read one at a time. A context manager; it closes the file."""

    def __init__(self, file: BinaryIO) -> None:
        """Take the file over. Raises InvalidHeader, and closes it, when it is not sound."""
        self._file = file
        try:
            self.header = read_header(file)
        except InvalidHeader:
            file.close()
            raise

    def __enter__(self) -> Self:
        """The open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._file.close()

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor `name` in its own type and shape. Raises KeyError, or InvalidHeader if the file has shrunk."""
        entry = self.header.tensors[name]
        return _read(self._file, entry, entry.start, entry.shape)

    def read_rows(self, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """`count` rows (along the first axis) of the tensor `name`, from row `first`. Raises as `read`."""
        return read_rows(self._file, self.header.tensors[name], first, count)


def read_rows(file: BinaryIO, entry: TensorEntry, first: int, count: int) -> np.ndarray[Any, Any]:
    """`count` rows (along the first axis) of one tensor of an open file. Raises InvalidHeader if it has shrunk."""
    row = (entry.end - entry.start) // entry.shape[0]
    return _read(file, entry, entry.start + first * row, (count, *entry.shape[1:]))


def _read(file: BinaryIO, entry: TensorEntry, offset: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if entry.dtype not in NUMPY:
        raise InvalidHeader(f"tensors of type {entry.dtype} can't be read")
    array = np.empty(shape, NUMPY[entry.dtype])
    view = array.reshape(-1).view(np.uint8).data
    while view:
        got = os.preadv(file.fileno(), [view], offset)
        if got == 0:
            raise InvalidHeader("the file ends inside its tensors", incomplete=True)
        view, offset = view[got:], offset + got
    return array


def _header_length(prefix: bytes, size: int) -> int:
    if prefix.startswith(b"version "):
        raise InvalidHeader("it is a Git LFS pointer and not the weights; fetch them with `git lfs pull`")
    if len(prefix) <= LENGTH_BYTES:
        raise InvalidHeader("the file ends before its header", incomplete=True)
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if not 2 <= length <= HEADER_LIMIT or not prefix.endswith(b"{"):  # noqa: PLR2004 (an empty JSON object)
        raise InvalidHeader("it is not a safetensors file: it doesn't begin with a header's length and a header")
    if LENGTH_BYTES + length > size:
        raise InvalidHeader("the file ends inside its header", incomplete=True)
    return length


def _check_metadata(value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidHeader("its __metadata__ is not a table of texts")


def _in_file_order(table: Mapping[str, Any], *, origin: int) -> dict[str, TensorEntry]:
    entries = ((name, _entry(name, row, origin)) for name, row in table.items())
    return dict(sorted(entries, key=lambda item: (item[1].start, item[1].end)))


def _entry(name: str, row: Any, origin: int) -> TensorEntry:
    shown = name[:100]
    if not name or len(name) > NAME_LIMIT or not name.isprintable():
        raise InvalidHeader(f"a tensor's name is not acceptable: {shown!r}")
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise InvalidHeader(f"the entry of {shown!r} is not {{dtype, shape, data_offsets}}")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InvalidHeader(f"{shown!r} has an unknown type")
    if not _sizes(shape) or len(shape) > DIMENSION_LIMIT:
        raise InvalidHeader(f"{shown!r} has no proper shape")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 (begin and end)
        raise InvalidHeader(f"{shown!r} has no proper offsets")
    if math.prod(shape) * BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise InvalidHeader(f"the bytes of {shown!r} don't fit its type and shape")
    return TensorEntry(dtype, tuple(shape), origin + offsets[0], origin + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_extent(entries: Mapping[str, TensorEntry], *, origin: int, size: int) -> None:
    end = origin
    for name, entry in entries.items():
        if entry.start != end:
            raise InvalidHeader(f"there is a hole or an overlap before {name[:100]!r}")
        end = entry.end
    if end > size:
        raise InvalidHeader(f"{end - size:,} of {end:,} bytes are missing at its end", incomplete=True)
    if end < size:
        raise InvalidHeader(f"{size - end:,} bytes too many follow the last tensor")
