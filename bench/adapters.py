"""Adapters to measure with: siblings of a trained one, and ones that look trained of any rank."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from service.adapter.base import Base
from service.adapter.weights import weight_norm

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
STRENGTH = 0.1
"""‖B·A‖ / ‖W‖ of a made adapter, about that of the demo adapters' stronger modules."""


def siblings(source: Path, target: Path, count: int, prefix: str = "a") -> list[str]:
    """Siblings of one adapter that differ a little in strength, so that each has a content of its own."""
    names = []
    for number in range(count):
        name = f"{prefix}{number:02d}"
        directory = target / name
        directory.mkdir(parents=True)
        tensors = load_file(source / WEIGHTS)
        for key in [key for key in tensors if "lora_B" in key]:
            scaled = tensors[key].astype(np.float32) * (1 - number / (4 * count))
            tensors[key] = scaled.astype(ml_dtypes.bfloat16)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        names.append(name)
    return names


def made(base: Path, target: Path, count: int, rank: int, prefix: str, dtype: type = ml_dtypes.bfloat16) -> list[str]:
    """Random adapters on every projection, as strong as trained ones.

    Numbers are of a trained adapter's size: a processor takes many times as long for those near the smallest it has.
    """
    model = Base.open(str(base))
    modules = {path: shape for path, shape in model.modules.items() if "layers" in path}
    names = []
    for number in range(count):
        generator = np.random.default_rng([rank, number])
        tensors = {}
        for path, (outputs, inputs) in modules.items():
            a = generator.normal(0, 0.02, (rank, inputs)).astype(np.float32)
            b = generator.normal(0, 1, (outputs, rank)).astype(np.float32)
            b *= STRENGTH * (weight_norm(model, path) or 1.0) / float(np.linalg.norm(b @ a))
            key = f"base_model.model.{path}"
            tensors[f"{key}.lora_A.weight"] = a.astype(dtype)
            tensors[f"{key}.lora_B.weight"] = b.astype(dtype)
        name = f"{prefix}{number:02d}"
        (target / name).mkdir(parents=True)
        save_file(tensors, target / name / WEIGHTS, metadata={"format": "pt"})
        (target / name / "adapter_config.json").write_text(json.dumps(_config(rank, modules)))
        names.append(name)
    return names


def _config(rank: int, modules: dict[str, tuple[int, int]]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in modules}),
        "base_model_name_or_path": None,
    }
