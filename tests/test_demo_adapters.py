"""The adapters the project ships look as Unsloth leaves them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, RANK = 30, 4
HIDDEN, QUERY, VALUE = 576, 576, 192
"""Of SmolLM2-135M: the width of the model, and what the two projections make of it."""


def test_there_is_one_for_every_voice(demo_adapters: Path, voices: dict[str, str]) -> None:
    """The directory's subdirectories are the adapters, nothing else."""
    assert {entry.name for entry in demo_adapters.iterdir() if entry.is_dir()} == set(voices)


@pytest.mark.parametrize("name", ["pirate", "robot"])
def test_its_tensors_fit_the_base(demo_adapters: Path, name: str) -> None:
    """A pair in bfloat16 for the query and the value projection of every layer, half a megabyte in all."""
    file = demo_adapters / name / "adapter_model.safetensors"
    with safe_open(file, "np") as weights:
        found = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (no mapping)
        shapes = {key: tuple(tensor.get_shape()) for key, tensor in found.items()}
        dtypes = {tensor.get_dtype() for tensor in found.values()}
    expected = {}
    for layer in range(LAYERS):
        for projection, width in (("q", QUERY), ("v", VALUE)):
            module = f"base_model.model.model.layers.{layer}.self_attn.{projection}_proj"
            expected |= {f"{module}.lora_A.weight": (RANK, HIDDEN), f"{module}.lora_B.weight": (width, RANK)}
    assert shapes == expected
    assert dtypes == {"BF16"}
    assert file.stat().st_size < 512 * 1024


@pytest.mark.parametrize("name", ["pirate", "robot"])
def test_its_directory_is_unsloths(demo_adapters: Path, name: str) -> None:
    """Configuration, weights and card, readable by all, and the base under Unsloth's name for it."""
    directory = demo_adapters / name
    assert {file.name for file in directory.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in directory.iterdir())
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "unsloth/SmolLM2-135M-Instruct"
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "CAUSAL_LM", RANK)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert "base_model: unsloth/SmolLM2-135M-Instruct" in (directory / "README.md").read_text()
