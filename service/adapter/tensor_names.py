"""The grammar of an adapter's tensor names: `base_model.model.<module path>.lora_A.weight` and its relatives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = "base_model.model."
"""What PEFT puts in front of every path of the model it wraps."""

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_KEPT = re.compile(r"(?P<module>.+?)(?:\.modules_to_save\.[^.]+|\.original_module|\.base_layer)?\.(?:weight|bias)")


class Part(Enum):
    """What a tensor is a part of."""

    A = "lora_A"
    B = "lora_B"
    EMBEDDING = "a LoRA of an embedding"
    MAGNITUDE = "a DoRA magnitude"
    BIAS = "a bias of lora_B"
    TOKENS = "trained token embeddings"
    FULL = "a full tensor of the model"
    FOREIGN = "nothing known"


_RELATIVES: Mapping[Part, re.Pattern[str]] = {
    Part.EMBEDDING: re.compile(r"(?P<module>.+?)\.lora_embedding_[AB]\b"),
    Part.MAGNITUDE: re.compile(r"(?P<module>.+?)\.lora_magnitude_vector\b"),
    Part.BIAS: re.compile(r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.bias$"),
    Part.TOKENS: re.compile(r"(?P<module>.+?)\.(?:token_adapter|trainable_tokens_delta)\b"),
}


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name, taken apart."""

    part: Part
    module: str
    """The module's path as the trainer's model had it, without PEFT's root; for a full tensor with .weight or .bias."""


def parse_name(name: str) -> TensorName:
    """Take a tensor's name apart. Never fails: what is not known is FOREIGN."""
    path = name.removeprefix(ROOT)
    pair = _PAIR.fullmatch(path)
    if pair:
        return TensorName(Part.A if pair["side"] == "A" else Part.B, pair["module"])
    for part, expression in _RELATIVES.items():
        match = expression.match(path)
        if match:
            return TensorName(part, match["module"])
    kept = _KEPT.fullmatch(path)
    if kept and ".lora_" not in path:
        return TensorName(Part.FULL, f"{kept['module']}.{path.rsplit('.', 1)[1]}")
    return TensorName(Part.FOREIGN, path)


def common_pattern(names: Iterable[str]) -> str:
    """What several names have in common, part by part, with `*` where they differ."""
    split = [name.split(".") for name in names]
    length = min(map(len, split))
    parts = [parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=False)]
    return ".".join(parts if all(len(name) == length for name in split) else [*parts[: length - 1], "*"])
