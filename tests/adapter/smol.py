"""A base with SmolLM2-135M's names and shapes but made-up numbers, and an adapter for it as Unsloth would save it."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYERS, HIDDEN, INNER, KEYS, VOCABULARY, RANK = 30, 576, 1536, 192, 49152, 8
SHAPES = {
    "mlp.down_proj": (HIDDEN, INNER),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
}
MODULES = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def write_base(directory: Path, tokenizer: Path | None = None) -> Path:
    """The base, with another directory's tokenizer if given. Its projections are as large as real ones."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "_name_or_path": BASE_ID,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {f"{module}.weight": shape for module, shape in MODULES.items()}
    shapes |= {f"model.layers.{layer}.input_layernorm.weight": (HIDDEN,) for layer in range(LAYERS)}
    write_bfloat16(directory / "model.safetensors", shapes | {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)})
    _give_tokenizer(directory, tokenizer)
    return directory


def write_bfloat16(path: Path, shapes: dict[str, tuple[int, ...]], value: float = 0.1) -> None:
    """A file of constant tensors; the last one is left a hole in the file, which reads as zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    last = header[next(reversed(shapes))]["data_offsets"]
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        chunk = np.full(1 << 20, value, ml_dtypes.bfloat16).tobytes()
        for _ in range(last[0] // len(chunk)):
            file.write(chunk)
        file.write(chunk[: last[0] % len(chunk)])
    os.truncate(path, 8 + len(text) + end)


def write_tokenizer(directory: Path, *, template: str = TEMPLATE, **settings: object) -> None:
    """A tokenizer of the base's size whose ordinary tokens are numbers."""
    tokens = SPECIAL + [f"t{number}" for number in range(len(SPECIAL), VOCABULARY)]
    document = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, "special": True} for number, text in enumerate(SPECIAL)],
        "normalizer": None,
        "model": {"type": "BPE", "vocab": {text: number for number, text in enumerate(tokens)}, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    fields = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "model_max_length": 8192}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields | settings))
    (directory / "chat_template.jinja").write_text(template)


def write_adapter(directory: Path, tokenizer: Path | None = None, *, rank: int = RANK) -> Path:
    """All seven projections of every layer, with the key order and the configuration of a real export."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    tensors = {}
    for module, (outputs, inputs) in sorted(MODULES.items()):
        for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            values = numbers.normal(0, 0.01, shape).astype(np.float32)
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = values
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config(r=rank, lora_alpha=2 * rank), indent=2))
    _give_tokenizer(directory, tokenizer)
    return directory


def _give_tokenizer(directory: Path, source: Path | None) -> None:
    if source is None:
        write_tokenizer(directory)
        return
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, directory / name)


def config(**changes: object) -> dict[str, object]:
    """adapter_config.json as PEFT 0.21 writes it, as far as anything reads it."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "unsloth/SmolLM2-135M-Instruct",
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 16,
        "lora_bias": False,
        "lora_dropout": 0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": [name.split(".")[-1] for name in SHAPES],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    } | changes
