"""The arithmetic of a merge: W + scale·B·A and what PEFT adds to it, in float32, on blocks of rows.

The formulas are PEFT's (`peft.tuners.lora.layer` and `.dora`, `peft.tuners.trainable_tokens`). Nothing here reads or
writes: every function takes rows of the base's tensor and gives the merged ones; rounding is the last thing and
happens once, in `rounded`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from service.adapter.safetensors_header import NUMPY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Raw = np.ndarray[Any, Any]


class Patch(Protocol):
    """What is done to one tensor of the base."""

    def apply(self, rows: Array, first: int) -> Array:
        """The merged rows for rows `first`, `first` + 1, … of the base's tensor, both in float32."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """W + scale·B·A for a matrix stored [out, in], or [in, out] when `transposed` (embeddings, GPT-2's Conv1D)."""

    a: Array
    """[r, in]"""
    b: Array
    """[out, r]"""
    scale: float
    transposed: bool = False

    def delta(self, first: int, count: int) -> Array:
        """Rows of scale·B·A as they are stored."""
        if self.transposed:
            product: Array = (self.b @ self.a[:, first : first + count]).T
        else:
            product = self.b[first : first + count] @ self.a
        scaled: Array = product * np.float32(self.scale)
        return scaled

    def apply(self, rows: Array, first: int) -> Array:
        """As `Patch.apply`."""
        return rows + self.delta(first, len(rows))


@dataclass(frozen=True, slots=True)
class Magnitude:
    """DoRA: the merged matrix with each output's norm set to the trained one, m · (W + ΔW) / ‖W + ΔW‖.

    Norms run over an output's weights: a stored row of an [out, in] matrix, and a stored column of a transposed one,
    whose norms have to be gathered over the whole matrix beforehand.
    """

    inner: LowRank
    magnitude: Array
    """[out]"""
    norms: Array | None = None
    """[out], of W + ΔW; given exactly when the matrix is transposed."""

    def apply(self, rows: Array, first: int) -> Array:
        """As `Patch.apply`."""
        merged = self.inner.apply(rows, first)
        if self.norms is not None:
            return merged * (self.magnitude / self.norms)
        norms: Array = np.sqrt(np.einsum("ij,ij->i", merged, merged, dtype=np.float64)).astype(np.float32)
        factors: Array = self.magnitude[first : first + len(rows)] / norms
        return merged * factors[:, None]


@dataclass(frozen=True, slots=True)
class Experts:
    """W[e] + scale·B[e]·A[e] for every expert e of a stack [experts, out, in], or [experts, in, out] when transposed.

    PEFT packs the experts of a pair expert by expert in A and rank by rank in B.
    """

    a: Array
    """[experts, r, in]"""
    b: Array
    """[experts, out, r]"""
    scale: float
    transposed: bool = False

    def apply(self, rows: Array, first: int) -> Array:
        """As `Patch.apply`; a row is an expert."""
        experts = range(first, first + len(rows))
        return np.stack([self.expert(number).apply(row, 0) for number, row in zip(experts, rows, strict=True)])

    def expert(self, number: int, outputs: slice = slice(None)) -> LowRank:
        """One expert's pair, or that part of it that makes some of its outputs."""
        return LowRank(self.a[number], self.b[number][outputs], self.scale, self.transposed)

    @classmethod
    def unpack(cls, a: Array, b: Array, count: int, scale: float, *, transposed: bool) -> Experts:
        """From the two tensors as PEFT saves them: [count·r, in] and [out, r·count]."""
        per_expert = b.reshape(b.shape[0], -1, count).transpose(2, 0, 1)
        return cls(a.reshape(count, -1, a.shape[1]), per_expert, scale, transposed)


@dataclass(frozen=True, slots=True)
class Shift:
    """A bias plus scale times the adapter's own."""

    bias: Array
    scale: float

    def apply(self, rows: Array, first: int) -> Array:
        """As `Patch.apply`; a row is one number."""
        return rows + self.bias[first : first + len(rows)] * np.float32(self.scale)


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """An embedding some of whose rows were trained; what PEFT calls their delta is the whole row."""

    tokens: tuple[int, ...]
    values: Array
    """[tokens, hidden]"""

    def apply(self, rows: Array, first: int) -> Array:
        """As `Patch.apply`."""
        merged = rows.copy()
        for token, value in zip(self.tokens, self.values, strict=True):
            if first <= token < first + len(rows):
                merged[token - first] = value
        return merged


def column_norms(pair: LowRank, blocks: Iterator[tuple[int, Array]]) -> Array:
    """‖W + ΔW‖ over the stored columns, from the rows of W with the number of each block's first."""
    total = np.zeros(len(pair.b), np.float64)
    for first, rows in blocks:
        merged = pair.apply(rows, first)
        total += np.einsum("ij,ij->j", merged, merged, dtype=np.float64)
    return np.sqrt(total).astype(np.float32)


def rounded(rows: Raw, dtype: str) -> Raw:
    """The rows in the type `dtype` (safetensors' word), rounded to nearest even; too large becomes infinite."""
    with np.errstate(over="ignore"):
        return rows.astype(NUMPY[dtype], copy=False)


def all_finite(rows: Raw) -> bool:
    """Whether no element is infinite or no number; whole numbers always are."""
    if rows.dtype.kind in "iub":
        return True
    return bool(np.isfinite(rows.astype(np.float32, copy=False)).all())


def row_blocks(count: int, row_bytes: int, limit: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of consecutive blocks of at most `limit` bytes, and at least one row."""
    step = max(1, limit // max(1, row_bytes))
    for first in range(0, count, step):
        yield first, min(step, count - first)
