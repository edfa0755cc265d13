"""The weights of a model directory, however they were split and stored, read a block of rows at a time."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, Self

import ml_dtypes

from service.adapter.files import open_regular, parse_object, read_bytes
from service.adapter.safetensors_header import InvalidHeader, TensorEntry, TensorFile
from service.adapter.spec import ProblemCode
from service.export.refusal import ExportCode, Refusal, Refused, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

SAFETENSORS = "model", "safetensors"
PICKLE = "pytorch_model", "bin"
ADAPTER_SAFETENSORS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
INDEX_LIMIT = 64 << 20
"""Bytes of an index; that of a model with 100,000 tensors takes a sixth of it."""
SHARD_LIMIT = 10_000
SHOWN = 3


class Tensors(Protocol):
    """Named tensors on a disk. A context manager that closes their files."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor's type, in safetensors' words, and shape."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """A whole tensor in its own type."""

    def read_rows(self, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """`count` rows along the first axis, from row `first`."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """Close every file."""


class SafetensorsShards:
    """The tensors of one or more safetensors files of a directory. Raises Refused for a file that isn't sound."""

    def __init__(self, directory: Path, files: tuple[str, ...]) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self._homes: dict[str, TensorFile] = {}
        with ExitStack() as stack:
            for name in files:
                self._adopt(name, stack.enter_context(_open(directory, name)))
            self._stack = stack.pop_all()

    def _adopt(self, file: str, shard: TensorFile) -> None:
        for tensor, entry in shard.header.tensors.items():
            if tensor in self.entries:
                refuse(
                    ProblemCode.WEIGHTS_INVALID,
                    f"The tensor {tensor} is in more than one file.",
                    file,
                    "Keep the files of one save only: leftovers of an earlier one stand beside them.",
                )
            self.entries[tensor] = entry
            self._homes[tensor] = shard

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self._stack.close()

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """As `Tensors.read`."""
        return self._homes[name].read(name)

    def read_rows(self, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """As `Tensors.read_rows`."""
        return self._homes[name].read_rows(name, first, count)


class PickleShards:
    """The tensors of PyTorch's zip files, mapped from the disk by its restricted unpickler: no code of theirs runs.

    Files of PyTorch before 1.6 can't be mapped and are refused, so the size of a file bounds what it costs.
    """

    def __init__(self, directory: Path, files: tuple[str, ...]) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        for file in files:
            for name, tensor in _unpickle(directory, file).items():
                array = _as_array(tensor, name, file)
                self.entries[name] = TensorEntry(_DTYPES[array.dtype.name], array.shape, 0, array.nbytes)
                self._arrays[name] = array

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the maps go."""
        self._arrays.clear()

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """As `Tensors.read`."""
        return self._arrays[name]

    def read_rows(self, name: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """As `Tensors.read_rows`."""
        return self._arrays[name][first : first + count]


def open_tensors(directory: Path, files: tuple[str, ...]) -> Tensors:
    """The tensors of `files`, which are all of one format."""
    return PickleShards(directory, files) if files[0].endswith(".bin") else SafetensorsShards(directory, files)


def model_files(directory: Path) -> tuple[str, ...]:
    """The weight files of a whole model, in order; () when there are none. Raises Refused when some are missing."""
    return _files(directory, *SAFETENSORS) or _files(directory, *PICKLE)


def _files(directory: Path, stem: str, suffix: str) -> tuple[str, ...]:
    single = f"{stem}.{suffix}"
    numbered = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.{suffix}")
    present = sorted(path.name for path in directory.iterdir() if numbered.fullmatch(path.name))
    if (directory / single).exists() and not present:
        return (single,)
    if (directory / single).exists():
        refuse(
            ExportCode.AMBIGUOUS,
            f"There is a whole {single} and there are numbered parts of another save.",
            single,
            "Remove the one or the others.",
        )
    expected = {name for match in map(numbered.fullmatch, present) if match for name in _series(match[2], stem, suffix)}
    missing = sorted((expected | _indexed(directory, f"{single}.index.json")) - set(present))
    if missing:
        refuse(
            ProblemCode.WEIGHTS_INCOMPLETE,
            f"Weight files are missing: {', '.join(missing[:SHOWN])}{' and more' if len(missing) > SHOWN else ''}.",
            missing[0],
            "Copy them from where the model was saved, or save it again.",
        )
    return tuple(present)


def _series(count: str, stem: str, suffix: str) -> list[str]:
    return [f"{stem}-{number:05}-of-{count}.{suffix}" for number in range(1, min(int(count), SHARD_LIMIT) + 1)]


def _indexed(directory: Path, name: str) -> set[str]:
    """The files an index speaks of; one that can't be read says nothing, since headers know better."""
    data = read_bytes(directory, name, INDEX_LIMIT, follow=True)
    try:
        weight_map = parse_object(data or b"{}").get("weight_map", {})
    except ValueError:
        return set()
    if not isinstance(weight_map, dict):
        return set()
    return {str(file) for file in weight_map.values()}


def _open(directory: Path, name: str) -> TensorFile:
    file = open_regular(directory, name, follow=True)
    if file is None:
        refuse(ProblemCode.WEIGHTS_MISSING, f"{name} is missing.", name)
    try:
        return TensorFile(file)
    except InvalidHeader as error:
        code = ProblemCode.WEIGHTS_INCOMPLETE if error.incomplete else ProblemCode.WEIGHTS_INVALID
        refuse(code, f"{name} is not a sound safetensors file: {error}.", name, "Save or copy it again.")


_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def _unpickle(directory: Path, name: str) -> Mapping[str, Any]:
    import torch

    try:
        state = torch.load(directory / name, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 (a hostile pickle fails in any way it likes)
        raise Refused([_not_tensors(name, _why(error))]) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise Refused([_not_tensors(name, "it holds something else than a table of tensors")])
    return state


def _why(error: Exception) -> str:
    """PyTorch's message is a page of advice to trust the file; what matters of it is a word."""
    if "weights only" in str(error).lower():
        return "it asks for more than tensors, so it was not opened"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _not_tensors(name: str, why: str) -> Refusal:
    return Refusal(
        ProblemCode.WEIGHTS_INVALID,
        f"{name} can't be read as a table of plain tensors: {why[:200]}",
        name,
        "Save the model with safe_serialization=True, which writes safetensors.",
    )


def _as_array(tensor: Any, name: str, file: str) -> np.ndarray[Any, Any]:
    import torch

    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or str(tensor.dtype)[6:] not in _DTYPES:
        raise Refused([_not_tensors(file, f"{name} is no plain tensor but {type(tensor).__name__} {tensor.dtype}")])
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return tensor.contiguous().numpy()  # type: ignore[no-any-return]
