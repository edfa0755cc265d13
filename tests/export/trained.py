"""Adapters as PEFT saves them, with random numbers in the place of a training."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import torch
from miniatures import NAME
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

SPREAD = 0.2
"""Of the random numbers that stand for a training."""


def adapter(base: Path, directory: Path, *, rows: int | None = None, **fields: Any) -> Path:
    """An adapter for `base` with the given fields of LoraConfig; `rows` resizes the vocabulary first."""
    save_adapter(train(base, rows=rows, **fields), directory)
    return directory


def train(base: Path, *, rows: int | None = None, **fields: Any) -> Any:
    """The base wrapped by PEFT, everything trainable moved at random."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if rows:
        model.resize_token_embeddings(rows)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn_like(parameter) * SPREAD)
            elif parameter.requires_grad:
                parameter.mul_(1 + SPREAD * torch.rand_like(parameter))
        if config.ensure_weight_tying and "embed_tokens" in config.target_modules:
            _tie(wrapped)
    return wrapped.eval()


def _tie(wrapped: Any) -> None:
    """The output layer's pair as that of the embedding, turned over: a training moves them as one."""
    embedding, head = wrapped.get_input_embeddings(), wrapped.get_output_embeddings()
    head.lora_A["default"].weight.copy_(embedding.lora_embedding_B["default"].T)
    head.lora_B["default"].weight.copy_(embedding.lora_embedding_A["default"].T)


def save_adapter(wrapped: Any, directory: Path) -> None:
    """save_pretrained, with the base's name as a training writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(directory)
    change(directory, base_model_name_or_path=NAME)


def change(directory: Path, **fields: Any) -> None:
    """Set fields of an adapter's configuration."""
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def merged(base: Path, directory: Path, **fields: Any) -> Path:
    """A whole model, as PEFT merges and transformers saves it, with the base's tokenizer."""
    model = train(base, **fields).merge_and_unload()
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((base / name).read_bytes())
    return directory
