"""What is written block by block is what the safetensors library reads back, in however many files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from service.export.shards import INDEX, Planned, split, write_shards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=12)


def in_blocks(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    yield from ([array] if array.ndim == 0 else (array[row : row + 1] for row in range(len(array))))


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 400))
def test_read_back(tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, ...]], limit: int) -> None:
    directory = tmp_path_factory.mktemp("shards")
    arrays = {
        f"t{number}": np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        for number, shape in enumerate(found)
    }
    planned = [Planned(name, "F32", array.shape) for name, array in arrays.items()]
    files = write_shards(directory, planned, lambda tensor: in_blocks(arrays[tensor.name]), limit=limit)
    read = {name: array for file in files for name, array in load_file(directory / file).items()}
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name], array) and read[name].shape == array.shape for name, array in arrays.items())
    if len(files) > 1:
        index = json.loads((directory / INDEX).read_text())
        homes = {name: file for file in files for name in load_file(directory / file)}
        assert index["weight_map"] == homes
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(1, 1000))
def test_no_file_is_larger_than_the_limit_for_more_than_one_tensor(counts: list[int], limit: int) -> None:
    tensors = [Planned(str(number), "BF16", (count,)) for number, count in enumerate(counts)]
    groups = split(tensors, limit)
    assert [tensor for group in groups for tensor in group] == tensors
    assert all(len(group) == 1 or sum(tensor.nbytes for tensor in group) <= limit for group in groups)


def test_the_format_is_named(tmp_path: Path) -> None:
    """Older transformers refuse a file that doesn't say that it is PyTorch's."""
    write_shards(tmp_path, [Planned("x", "BF16", (2,))], lambda _: iter([np.zeros(2, np.uint16)]))
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_of_another_size_than_announced_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="announced"):
        write_shards(tmp_path, [Planned("x", "F32", (2,))], lambda _: iter([np.zeros(3, np.float32)]))
