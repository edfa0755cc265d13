"""Writing safetensors one block at a time, so that a model never has to be in memory, and the index over its files.

The safetensors library writes a file from tensors that are all in memory; here the header goes first, since every
shape and type is known beforehand, and the data follows as it is computed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.adapter.safetensors_header import NUMPY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

SHARD_BYTES = 5_000_000_000
"""Size of a file above which the next one begins, as model hubs recommend."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written: its name, type (in safetensors' words) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


def write_shards(
    directory: Path,
    tensors: Sequence[Planned],
    blocks: Callable[[Planned], Iterator[np.ndarray[Any, Any]]],
    *,
    limit: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Write all tensors in their order, `blocks` giving each one's rows, and return the files' names.

    An index is written when there is more than one file. Every file is on the disk when this returns.
    """
    groups = split(tensors, limit)
    names = [_file_name(number, len(groups)) for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        _write_file(directory / name, group, blocks)
    if len(groups) > 1:
        _write_index(directory / INDEX, names, groups)
    return tuple(names)


def split(tensors: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Consecutive groups of at most `limit` bytes; a tensor larger than that is a group of its own."""
    groups: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def header(tensors: Sequence[Planned]) -> bytes:
    """The length and the JSON that open a safetensors file of these tensors, padded to a multiple of eight bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        table[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_file(
    path: Path, tensors: Sequence[Planned], blocks: Callable[[Planned], Iterator[np.ndarray[Any, Any]]]
) -> None:
    with path.open("xb", buffering=0) as file:
        file.write(header(tensors))
        for tensor in tensors:
            written = sum(_write_all(file.fileno(), block) for block in blocks(tensor))
            if written != tensor.nbytes:
                raise AssertionError(f"{tensor.name} has {written} bytes and was announced with {tensor.nbytes}")
        os.fsync(file.fileno())


def _write_all(descriptor: int, block: np.ndarray[Any, Any]) -> int:
    """Write a whole block; one call may take less than it was given (above 2 GiB it always does)."""
    view = block.reshape(-1).view("u1").data
    while view:
        view = view[os.write(descriptor, view) :]
    return block.nbytes


def _write_index(path: Path, names: Sequence[str], groups: Sequence[Sequence[Planned]]) -> None:
    weight_map = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
    total = sum(tensor.nbytes for group in groups for tensor in group)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
