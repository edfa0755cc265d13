"""A small mixture of experts as a base, stored in each of the ways there are, and an adapter of its fused experts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS, HIDDEN, WIDTH, RANK, VOCABULARY = 4, 64, 32, 2, 32
EXPERTS_PATH = "model.layers.0.mlp.experts"


def write_base(directory: Path, stored: str = "stacked") -> Path:
    """One layer. `stored` is stacked, flipped (stacked the other way round), single or mxfp4."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "max_position_embeddings": 128,
        "_name_or_path": "example/tiny-mixture",
    }
    (directory / "config.json").write_text(json.dumps(config))
    numbers = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    }
    shapes |= _expert_shapes(stored)
    tensors: dict[str, Any] = {name: numbers.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    if stored == "mxfp4":
        tensors |= {name: tensors[name].astype(np.uint8) for name in shapes if name.endswith("_blocks")}
    save_file(tensors, directory / "model.safetensors")
    return directory


def _expert_shapes(stored: str) -> dict[str, tuple[int, ...]]:
    path = EXPERTS_PATH
    match stored:
        case "stacked":
            return {f"{path}.gate_up_proj": (EXPERTS, 2 * WIDTH, HIDDEN), f"{path}.down_proj": (EXPERTS, HIDDEN, WIDTH)}
        case "flipped":
            return {f"{path}.gate_up_proj": (EXPERTS, HIDDEN, 2 * WIDTH), f"{path}.down_proj": (EXPERTS, WIDTH, HIDDEN)}
        case "mxfp4":
            return {
                f"{path}.gate_up_proj_blocks": (EXPERTS, 2 * WIDTH, HIDDEN // 32, 16),
                f"{path}.down_proj_blocks": (EXPERTS, HIDDEN, WIDTH // 32, 16),
            }
        case _:
            one = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
            return {f"{path}.{n}.{part}.weight": shape for n in range(EXPERTS) for part, shape in one.items()}


def expert_pairs(seed: int = 0) -> dict[str, list[tuple[Any, Any]]]:
    """For both fused matrices, lora_A and lora_B of each expert."""
    numbers = np.random.default_rng(seed)

    def pair(outputs: int, inputs: int) -> tuple[Any, Any]:
        return tuple(numbers.normal(0, 0.01, shape).astype(np.float32) for shape in ((RANK, inputs), (outputs, RANK)))

    return {
        "experts.base_layer": [pair(2 * WIDTH, HIDDEN) for _ in range(EXPERTS)],
        "experts": [pair(HIDDEN, WIDTH) for _ in range(EXPERTS)],
    }


def packed(pairs: list[tuple[Any, Any]], *, grouped: bool) -> tuple[Any, Any]:
    """All experts' lora_A stacked, and their lora_B with columns expert by expert or else rank by rank."""
    a = np.concatenate([a for a, _ in pairs])
    b = np.stack([b for _, b in pairs], axis=1 if grouped else 2)
    return a, np.ascontiguousarray(b.reshape(b.shape[0], -1))


def write_adapter(directory: Path, *, grouped: bool = False, **config: Any) -> Path:
    """An adapter of the experts, as newer Unsloth versions save it, or as those until 2026.9.5 did (`grouped`)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, pairs in expert_pairs().items():
        a, b = packed(pairs, grouped=grouped)
        prefix = f"base_model.model.model.layers.0.mlp.{name}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(tensors, directory / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "example/tiny-mixture",
        "auto_mapping": {"base_model_class": "GptOssForCausalLM", "unsloth_fixed": True},
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": "(?:.*?(?:self_attn).*?\\.(?:q_proj|k_proj))",
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    layout = {} if grouped else {"lora_B_layout": "rank_major"}
    (directory / "adapter_config.json").write_text(json.dumps(fields | layout | config))
    return directory
