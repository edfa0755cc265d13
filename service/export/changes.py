"""What is done to one tensor of the base, by the names of the adapter's tensors that do it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """A plain LoRA pair, with DoRA's magnitude if it has one: `merge.LowRank`, `merge.Magnitude`."""

    a: str
    b: str
    scale: float
    transposed: bool = False
    magnitude: str = ""


@dataclass(frozen=True, slots=True)
class Stack:
    """A pair that holds all experts of one stacked tensor: `merge.Experts`."""

    a: str
    b: str
    scale: float
    experts: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class OneExpert:
    """The same pair, for a base that keeps each expert's matrices as tensors of their own."""

    a: str
    b: str
    scale: float
    experts: int
    number: int
    first: int = 0
    """The first of the pair's outputs that this tensor has; gate and up are one pair."""
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Bias:
    """What lora_bias adds: `merge.Shift`."""

    bias: str
    scale: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Single trained rows of an embedding: `merge.TrainedTokens`."""

    values: str
    tokens: tuple[int, ...]


Recipe = Pair | Stack | OneExpert | Bias | Rows


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one tensor of the base."""

    replacement: str = ""
    """The adapter's tensor that takes the base's place, before the recipe is applied."""
    recipe: Recipe | None = None
