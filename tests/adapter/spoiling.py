"""The tools of defects.py: a healthy directory is copied, and one thing in the copy is spoiled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Spoil = Callable[[Path], None]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model.model"
Q0 = f"{ROOT}.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Defect:
    """One way to spoil an adapter."""

    name: str
    expected: frozenset[str]
    story: str
    """What happened to it, for people."""
    spoil: Spoil

    def make(self, healthy: Path, target: Path) -> Path:
        """A spoiled copy of `healthy` in the new directory `target`."""
        shutil.copytree(healthy, target, ignore=shutil.ignore_patterns("README.md"))
        for file in target.iterdir():
            file.chmod(0o644)
        self.spoil(target)
        return target


class Defects(list[Defect]):
    """Defects of one kind, in the order they are told."""

    def spoiled(self, expected: str, story: str) -> Callable[[Spoil], Spoil]:
        """Add the function below as a defect of its name; `expected` are codes between spaces."""

        def add(spoil: Spoil) -> Spoil:
            self.append(Defect(spoil.__name__, frozenset(expected.split()), story, spoil))
            return spoil

        return add

    def configured(self, name: str, expected: str, story: str, **changes: Any) -> None:
        """Add a defect that only changes fields of adapter_config.json; `...` takes a field away."""

        def spoil(directory: Path) -> None:
            edit_config(directory, **changes)

        self.append(Defect(name, frozenset(expected.split()), story, spoil))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def edit_tensors(directory: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edited = edit(tensors)
    save_file(tensors if edited is None else edited, directory / WEIGHTS, metadata={"format": "pt"})


def edit_header(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = directory / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def edit_json(directory: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((directory / name).read_text())
    edit(document)
    (directory / name).write_text(json.dumps(document))


def scaled(tensors: Tensors, factor: float, part: str = "") -> Tensors:
    return {name: array * np.float32(factor) if part in name else array for name, array in tensors.items()}


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): array for name, array in tensors.items()}


def ranked(tensors: Tensors, rank: int) -> Tensors:
    """The same adapter cut or repeated to another rank."""

    def resize(name: str, array: Array) -> Array:
        return np.resize(array, (rank, array.shape[1]) if "lora_A" in name else (array.shape[0], rank))

    return {name: resize(name, array) for name, array in tensors.items()}
