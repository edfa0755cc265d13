"""The tensors of an adapter, taken apart by their names: which module each belongs to and what it is to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from service.adapter.tensor_names import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Part(StrEnum):
    """What a tensor of an adapter is, as PEFT names it after the module's path."""

    A = "lora_A.weight"
    B = "lora_B.weight"
    B_BIAS = "lora_B.bias"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    TOKENS = "token_adapter.trainable_tokens_delta"
    WEIGHT = "weight"
    """A whole weight that takes the base's place."""
    BIAS = "bias"


_SUFFIXES: tuple[tuple[str, Part | None], ...] = (
    ("lora_A.weight", Part.A),
    ("lora_B.weight", Part.B),
    ("lora_B.bias", Part.B_BIAS),
    ("lora_embedding_A", Part.EMBEDDING_A),
    ("lora_embedding_B", Part.EMBEDDING_B),
    ("lora_magnitude_vector.weight", Part.MAGNITUDE),
    ("lora_magnitude_vector", Part.MAGNITUDE),
    ("token_adapter.trainable_tokens_delta", Part.TOKENS),
    ("token_adapter.base_layer.weight", Part.WEIGHT),
    ("base_layer.weight", Part.WEIGHT),
    ("base_layer.bias", Part.BIAS),
    ("original_module.weight", None),
    ("original_module.bias", None),
    ("modules_to_save.weight", Part.WEIGHT),
    ("modules_to_save.bias", Part.BIAS),
    ("weight", Part.WEIGHT),
    ("bias", Part.BIAS),
)
"""Ending of a name → what it is; None for PEFT's untrained copy of a module that was trained whole."""
_ADAPTER_NAME = re.compile(r"\.default(?=\.|$)")
"""A state dict saved by hand carries the adapter's name inside PEFT's names."""


@dataclass(frozen=True, slots=True)
class Module:
    """What an adapter has for one module of the base."""

    path: str
    """As the model's code names it, without PEFT's prefix; `….base_layer` for an inner wrapper around experts."""
    tensors: Mapping[Part, str] = field(default_factory=dict)
    """What it is → the tensor's name in the adapter's file."""


def plain_name(name: str) -> str:
    """A tensor's name as PEFT saves it: without the adapter's own name inside."""
    return _ADAPTER_NAME.sub("", name)


def take_apart(names: Iterable[str]) -> tuple[dict[str, Module], list[str]]:
    """Module path → its parts, and the names that fit no pattern."""
    modules: dict[str, dict[Part, str]] = {}
    unknown: list[str] = []
    for name in names:
        plain = plain_name(name).removeprefix(ROOT)
        suffix, part = next((row for row in _SUFFIXES if plain.endswith(f".{row[0]}")), ("", None))
        if not suffix:
            unknown.append(name)
        elif part is not None:
            modules.setdefault(plain[: -len(suffix) - 1], {}).setdefault(part, name)
    return {path: Module(path, tensors) for path, tensors in modules.items()}, unknown
