"""A base model of one layer and adapters for it, a few kilobytes each, as files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, VOCABULARY, RANK = 16, 32, 4
BASE_ID = "example/tiny-base"


def write_base(directory: Path) -> Path:
    """One layer of attention in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "torch_dtype": "bfloat16",
        "_name_or_path": BASE_ID,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {f"model.layers.0.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN)
    tensors = {name: np.full(shape, 0.02, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_adapter(directory: Path, seed: int = 0, **config: object) -> Path:
    """A sound adapter for it, as PEFT leaves one; another seed is another content, `config` changes fields."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    tensors = {}
    for name in ("q_proj", "v_proj"):
        prefix = f"base_model.model.model.layers.0.self_attn.{name}"
        for part, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK))):
            tensors[f"{prefix}.lora_{part}.weight"] = numbers.normal(0, 0.01, shape).astype(ml_dtypes.bfloat16)
    save_file(tensors, directory / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_ID,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
    }
    (directory / "adapter_config.json").write_text(json.dumps(fields | config))
    return directory
