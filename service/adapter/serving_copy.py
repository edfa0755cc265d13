"""What the engine reads: an adapter's weights in the serving type, mended, beside a configuration without surprises."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from service.adapter.config import CONFIG, AdapterConfig, parse_config
from service.adapter.content import new_file, sync_directory
from service.adapter.files import CONFIG_LIMIT, TOKENIZER_LIMIT, open_regular, read_bytes
from service.adapter.layout import WEIGHTS
from service.adapter.placement import parameter
from service.adapter.safetensors_header import LENGTH_BYTES, TensorFile
from service.adapter.tensor_names import Part, parse_name
from service.adapter.tokenizer import TEMPLATE, TOKENIZER_FILES, read_tokenizer
from service.adapter.weights import SERVING_TYPES
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.spec import Report

STORED: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ServingCopy:
    """What was written."""

    modules: int
    """Modules with an effect; pairs that come to nothing in the serving type are left out."""
    stop_token_ids: tuple[int, ...]
    bytes: int
    """Size of the weights, in the serving type."""


def write_serving_copy(source: Path, target: Path, base: Base, report: Report, dtype: str) -> ServingCopy:
    """Write into `target` what the engine reads of the inspected adapter in `source`.

    The target is made if it isn't there and must not hold any of the files; they are readable by all and on disk when
    it returns. `report` is the inspection's of the same directory. Raises Rejected when the report has problems.
    """
    config = _read_config(source, report)
    target.mkdir(exist_ok=True)
    modules, size = _write_weights(source, target, report, dtype)
    with new_file(target / CONFIG) as file:
        file.write(json.dumps(_serving_config(config, modules), indent=2, sort_keys=True).encode())
    if report.own_template:
        with new_file(target / TEMPLATE) as file:
            file.write((read_tokenizer(source, like=base.tokenizer).template or "").encode())
    if report.own_tokenizer:
        _write_tokenizer(source, target, base)
    sync_directory(target)
    return ServingCopy(
        len({module.path.removesuffix(".base_layer") for module in modules}), report.stop_token_ids, size
    )


def _read_config(source: Path, report: Report) -> AdapterConfig:
    if report.problems:
        raise Rejected(report.problems)
    config, problems = parse_config(read_bytes(source, CONFIG, CONFIG_LIMIT) or b"")
    if config is None or problems:
        raise Rejected(problems)
    return config


@dataclass(frozen=True, slots=True)
class _Served:
    """One module of the serving copy: the path patterns spoke of, and the path it has now."""

    trained: str
    path: str


def _write_weights(source: Path, target: Path, report: Report, dtype: str) -> tuple[list[_Served], int]:
    raw = open_regular(source, WEIGHTS)
    if raw is None:
        raise FileNotFoundError(WEIGHTS)
    modules = []
    with TensorFile(raw) as file, new_file(target / WEIGHTS) as copy:
        writer = _Writer(copy, file, report.repairs.names, STORED[dtype])
        for pair in _pairs(report.repairs.names):
            arrays = {name: _served(file, name, report, dtype) for name in pair}
            if all(array.any() for array in arrays.values()):
                first = parse_name(pair[0])
                modules.append(_Served(first.module, parse_name(report.repairs.names[pair[0]]).module))
                for name, array in arrays.items():
                    writer.add(report.repairs.names[name], array)
        return modules, writer.finish()


def _pairs(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    sides: dict[str, dict[Part, str]] = {}
    for tensor, served in names.items():
        name = parse_name(served)
        sides.setdefault(name.module, {})[name.part] = tensor
    return ((side[Part.A], side[Part.B]) for side in sides.values())


def _served(file: TensorFile, name: str, report: Report, dtype: str) -> Array:
    array = file.read(name).astype(SERVING_TYPES[dtype])
    experts = report.repairs.grouped.get(name)
    if experts:
        outputs, columns = array.shape
        array = array.reshape(outputs, experts, columns // experts).swapaxes(1, 2).reshape(outputs, columns)
    return np.ascontiguousarray(array)


class _Writer:
    """Writes a safetensors file front to back, with room kept for a header that names every tensor."""

    def __init__(self, copy: BinaryIO, file: TensorFile, names: Mapping[str, str], stored: str) -> None:
        self._copy = copy
        self._stored = stored
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        longest = {
            new: _entry(stored, file.header.tensors[old].shape, file.header.size, file.header.size * 4)
            for old, new in names.items()
        }
        self._room = -(-len(json.dumps({**self._entries, **longest})) // 8) * 8
        copy.seek(LENGTH_BYTES + self._room)

    def add(self, name: str, array: Array) -> None:
        end = self._end + array.nbytes
        self._entries[name] = _entry(self._stored, array.shape, self._end, end)
        self._copy.write(array.view(np.uint8).data)
        self._end = end

    def finish(self) -> int:
        """Write the header and return the file's size."""
        self._copy.seek(0)
        self._copy.write(self._room.to_bytes(LENGTH_BYTES, "little"))
        self._copy.write(json.dumps(self._entries).encode().ljust(self._room))
        return LENGTH_BYTES + self._room + self._end


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _serving_config(config: AdapterConfig, modules: list[_Served]) -> dict[str, Any]:
    """A configuration that means the same, with every deviating module named in full and nothing to be interpreted."""
    ranks = {_key(module): config.rank(parameter(module.trained)) for module in modules}
    alphas = {_key(module): config.module_alpha(parameter(module.trained)) for module in modules}
    fused = {parameter(module.path) for module in modules if parameter(module.path) != module.path}
    plain = {module.path.rsplit(".", 1)[-1] for module in modules if parameter(module.path) == module.path}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "init_lora_weights": True,
        "bias": "none",
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.rslora,
        "rank_pattern": {key: rank for key, rank in ranks.items() if rank != config.r},
        "alpha_pattern": {key: alpha for key, alpha in alphas.items() if alpha != config.alpha},
        "target_modules": sorted(plain),
        "target_parameters": sorted({".".join(path.split(".")[-3:]) for path in fused}) or None,
    }


def _key(module: _Served) -> str:
    return f"^{re.escape(parameter(module.path))}"


def _write_tokenizer(source: Path, target: Path, base: Base) -> None:
    """The adapter's tokenizer files, made complete with the base's where it came without one."""
    for name in TOKENIZER_FILES:
        data = read_bytes(source, name, TOKENIZER_LIMIT)
        if data is None:
            data = read_bytes(base.path, name, TOKENIZER_LIMIT, follow=True)
        if data is not None:
            with new_file(target / name) as file:
                file.write(data)
