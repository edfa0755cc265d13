"""Which parts of a base model a LoRA can sit on, read from the names and shapes of the base's own tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from service.adapter.safetensors_header import TensorEntry

NOT_PROJECTIONS = frozenset(
    {
        "classifier",
        "embed_in",
        "embed_out",
        "embed_positions",
        "embed_tokens",
        "embeddings",
        "lm_head",
        "position_embedding",
        "position_embeddings",
        "relative_attention_bias",
        "score",
        "shared",
        "tok_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
"""Last parts of two-dimensional weights that are tables of embeddings or heads over the vocabulary."""
TRANSPOSED = frozenset({"gpt2", "openai-gpt"})
"""Model types whose linear layers are stored as (inputs, outputs)."""
MATRIX = 2
STACK = 3
MXFP4_BLOCK = 32
"""Weights that share a scale in MXFP4; a row of blocks holds so many inputs each."""

_EXPERT = re.compile(r"(?P<path>.+\.experts)\.(?P<number>\d+)\.(?P<kind>gate_proj|down_proj)\.weight")
_STACKED = re.compile(r"(?P<path>.+\.experts)\.(?P<kind>gate_up_proj|down_proj)(?P<blocks>_blocks)?")


@dataclass(frozen=True, slots=True)
class Experts:
    """One layer's mixture of experts: how many, and each one's two fused matrices as (outputs, inputs)."""

    count: int
    gate_up: tuple[int, int]
    down: tuple[int, int]


def find_modules(entries: Mapping[str, TensorEntry], model_type: str) -> dict[str, tuple[int, int]]:
    """Linear module path → (outputs, inputs), from the two-dimensional weights of a base."""
    modules = {}
    for name, entry in entries.items():
        module = name.removesuffix(".weight")
        if module == name or len(entry.shape) != MATRIX or module.rsplit(".", 1)[-1] in NOT_PROJECTIONS:
            continue
        rows, columns = entry.shape
        modules[module] = (columns, rows) if model_type in TRANSPOSED else (rows, columns)
    return modules


def find_experts(entries: Mapping[str, TensorEntry], hidden_size: Any) -> dict[str, Experts]:
    """Path of a layer's experts → their number and shapes, whether stored one by one, stacked, or as MXFP4 blocks."""
    counts: dict[str, int] = {}
    widths: dict[str, int] = {}
    for name, entry in entries.items():
        one, stack = _EXPERT.fullmatch(name), _STACKED.fullmatch(name)
        if one and one["kind"] == "gate_proj":
            counts[one["path"]] = max(counts.get(one["path"], 0), int(one["number"]) + 1)
            widths[one["path"]] = entry.shape[0]
        elif stack and stack["kind"] == "down_proj" and len(entry.shape) >= STACK:
            counts[stack["path"]] = entry.shape[0]
            widths[stack["path"]] = _stacked_width(entry, hidden_size, blocks=bool(stack["blocks"]))
    return {
        path: Experts(count, (2 * widths[path], hidden_size), (hidden_size, widths[path]))
        for path, count in counts.items()
        if type(hidden_size) is int
    }


def stored_weights(module: str, tensors: Collection[str], experts: Mapping[str, Experts]) -> list[str]:
    """Names of the tensors that hold a module's weight: one, or for unstacked experts one or two of each."""
    for name in (f"{module}.weight", module, f"{module}_blocks"):
        if name in tensors:
            return [name]
    path, _, kind = module.rpartition(".")
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    count = experts[path].count if path in experts else 0
    return [f"{path}.{number}.{part}.weight" for number in range(count) for part in parts]


def _stacked_width(entry: TensorEntry, hidden_size: Any, *, blocks: bool) -> int:
    """Inputs of one expert's down projection, whichever way round its matrix is stored."""
    if blocks:
        return entry.shape[2] * MXFP4_BLOCK
    first, second = entry.shape[1:3]
    return second if first == hidden_size else first
