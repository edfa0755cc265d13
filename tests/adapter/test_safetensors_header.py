from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from service.adapter.safetensors_header import (
    HEADER_LIMIT,
    NAME_LIMIT,
    InvalidHeader,
    TensorFile,
    is_whole,
    read_header,
)

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_, ml_dtypes.bfloat16]

tables = st.dictionaries(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
    max_size=6,
)


def tensors_of(table: dict[str, tuple[Any, list[int]]]) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(0)
    return {name: numbers.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in table.items()}


def open_tensors(path: Path) -> TensorFile:
    return TensorFile(path.open("rb", buffering=0))


def written(directory: Path, data: bytes) -> Path:
    path = directory / "file.safetensors"
    path.write_bytes(data)
    return path


@given(tables)
def test_reads_what_the_library_writes(tmp_path: Path, table: dict[str, tuple[Any, list[int]]]) -> None:
    tensors = tensors_of(table)
    path = written(tmp_path, save(tensors, {"format": "pt"}))
    with open_tensors(path) as file:
        assert set(file.header.tensors) == set(tensors)
        assert file.header.size == path.stat().st_size
        for name, tensor in tensors.items():
            read = file.read(name)
            assert read.dtype == tensor.dtype
            assert np.array_equal(read, tensor)
    assert is_whole(path)


@given(tables, st.data())
def test_a_file_cut_anywhere_is_incomplete(tmp_path: Path, table: dict[str, Any], data: st.DataObject) -> None:
    whole = save(tensors_of(table))
    path = written(tmp_path, whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InvalidHeader) as raised:
        open_tensors(path)
    assert raised.value.incomplete
    assert not is_whole(path)


@given(tables, st.data())
def test_never_accepts_what_the_library_refuses(tmp_path: Path, table: dict[str, Any], data: st.DataObject) -> None:
    """A few bytes changed anywhere: no other error than InvalidHeader, and no verdict milder than the library's."""
    spoiled = bytearray(save(tensors_of(table)))
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(spoiled))
    try:
        with open_tensors(path) as file:
            ours = {name: entry.shape for name, entry in file.header.tensors.items()}
    except InvalidHeader:
        return
    try:
        theirs = {name: tuple(tensor["shape"]) for name, tensor in deserialize(bytes(spoiled))}
    except SafetensorError as error:
        pytest.fail(f"the library refuses it: {error}")
    assert ours == theirs


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidHeader):
        open_tensors(written(tmp_path, data))


def header_file(directory: Path, table: Any, data: bytes = b"") -> Path:
    text = json.dumps(table).encode()
    return written(directory, len(text).to_bytes(8, "little") + text + data)


def entry(dtype: str = "U8", shape: tuple[int, ...] = (4,), offsets: tuple[int, ...] = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    "table",
    [
        {"a": entry(extra=1)},
        {"a": entry(shape=(True, 4))},
        {"a": entry(shape=(1,) * 9)},
        {"a": entry(shape=(1 << 50,), offsets=(0, 1 << 50))},
        {"a": entry(), "b": entry(offsets=(0, 4))},
        {"": entry()},
        {"a" * (NAME_LIMIT + 1): entry()},
        {"a": [1, 2, 3]},
        {"a": entry(), "__metadata__": {"count": 1}},
        {"a": entry(), "__metadata__": "text"},
        {"a": entry(dtype=["U8"])},
    ],
)
def test_refused_tables(tmp_path: Path, table: Any) -> None:
    with pytest.raises(InvalidHeader) as raised:
        open_tensors(header_file(tmp_path, table, b"\0" * 4))
    assert not raised.value.incomplete


def test_a_header_as_long_as_it_pleases_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(InvalidHeader, match="not a safetensors file"):
        open_tensors(path)
    assert is_whole(path)


def test_a_missing_file_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "nothing")


def test_rows(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    with open_tensors(written(tmp_path, save({"a": array}))) as file:
        assert np.array_equal(file.read_rows("a", 1, 3), array[1:4])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, save({"a": np.zeros(1000, np.float32)}))
    with open_tensors(path) as file:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InvalidHeader) as raised:
            file.read("a")
    assert raised.value.incomplete


def test_types_without_numbers_are_not_read(tmp_path: Path) -> None:
    path = header_file(tmp_path, {"a": entry("F4", (8,), (0, 4))}, b"\0" * 4)
    with TensorFile(path.open("rb", buffering=0)) as file, pytest.raises(InvalidHeader, match="F4"):
        file.read("a")


def test_the_digest_is_the_headers(tmp_path: Path) -> None:
    """Two files with other numbers have the same header; another name is another header."""
    digests = []
    for name, value in (("a", 0), ("a", 1), ("b", 0)):
        with written(tmp_path, save({name: np.full(4, value, np.float32)})).open("rb", buffering=0) as file:
            digests.append(read_header(file).digest)
    assert digests[0] == digests[1] != digests[2]
