"""The numbers of an adapter, one tensor at a time: finite, inside the serving type, not nothing, and how strong.

The strength of a module is ‖scale·B·A‖ / ‖W‖ in the Frobenius norm: how large the change is beside the weight it
changes. B·A is never formed: ‖B·A‖² = trace((BᵀB)(AAᵀ)), a product of two matrices of r by r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from service.adapter.spec import Problem, ProblemCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from service.adapter.base import Base
    from service.adapter.safetensors_header import TensorFile

STRENGTH_LIMIT = 10.0
"""A change so many times as large as the weight leaves nothing of the base; docs/validation.md says why here."""
SAMPLE = 1 << 20
"""Elements of a base weight its norm is taken from: all of a small one, evenly spaced blocks of rows of a large one."""
BLOCKS = 32
SERVING_TYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
"""Types on disk that a LoRA may have."""
SQUARABLE = 1e15
"""Magnitudes up to here can be squared and summed in float32."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """lora_A and lora_B of one module."""

    module: str
    """Path in the base."""
    a: str
    b: str
    """Names of the tensors in the file."""
    scale: float
    experts: int = 0
    """Number of experts packed into it; 0 for an ordinary module."""
    grouped: bool = False
    """Whether lora_B's columns are packed expert by expert and not rank by rank."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one pass over the numbers found."""

    problems: tuple[Problem, ...]
    strength: float | None
    """None where no module could be measured, or where it is beyond all numbers."""
    strongest: str


@dataclass(frozen=True, slots=True)
class _Factor:
    """One matrix of a pair: its values in float32, its largest magnitude before and after the cast."""

    values: Array
    largest: float
    served: float


def measure(file: TensorFile, pairs: Sequence[Pair], loose: Iterable[str], base: Base, dtype: str) -> Measurement:
    """Read every pair once, and the `loose` tensors that belong to none, of which only the values are judged.

    `dtype` is the serving type. Problems are not_finite, overflow and no_effect.
    """
    problems: list[Problem] = []
    strengths: dict[str, float] = {}
    effective = False
    for pair in pairs:
        a, b = (_read_factor(file, name, dtype) for name in (pair.a, pair.b))
        problems += _number_problems(pair.a, a, dtype)
        problems += _number_problems(pair.b, b, dtype)
        effective |= a.served != 0 and b.served != 0 and pair.scale != 0
        strength = _strength(pair, a, b, base)
        if strength is not None:
            strengths[pair.module] = strength
    for name in loose:
        problems += _number_problems(name, _read_factor(file, name, dtype), dtype)
    strongest = max(strengths, key=lambda module: strengths[module], default="")
    problems += _too_strong(strengths)
    if pairs and not effective:
        problems.append(_no_effect())
    strength = strengths.get(strongest)
    finite = strength is not None and math.isfinite(strength)
    return Measurement(tuple(problems), strength if finite else None, strongest)


@lru_cache(maxsize=1 << 17)
def weight_norm(base: Base, module: str) -> float | None:
    """‖W‖ of one module of the base, or None where its weights are not stored as plain numbers. Some are all zero.

    Read once per base and module; of a large weight only evenly spaced rows are read and the norm is extrapolated.
    """
    squares = [_squares(base, tensor) for tensor in base.weights_of(module)]
    known = [square for square in squares if square is not None]
    return math.sqrt(sum(known)) if known and len(known) == len(squares) else None


def as_float32(array: Array) -> Array:
    """The values in float32; bfloat16 by widening its bits, which is many times faster than a conversion."""
    if array.dtype == SERVING_TYPES["bfloat16"]:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _read_factor(file: TensorFile, name: str, dtype: str) -> _Factor:
    raw = file.read(name)
    values = as_float32(raw)
    source = raw if raw.dtype == np.float64 else values
    largest = float(max(source.max(), -source.min())) if source.size else 0.0
    with np.errstate(over="ignore", under="ignore"):
        # Rounding keeps order, so the largest magnitude tells for all of them what becomes of it.
        served = float(np.array(largest).astype(SERVING_TYPES[dtype]))
    return _Factor(values, largest, served)


def _number_problems(name: str, factor: _Factor, dtype: str) -> Iterator[Problem]:
    if not math.isfinite(factor.largest):
        yield Problem(
            ProblemCode.NOT_FINITE,
            "It holds NaN or Inf: training has diverged.",
            name,
            "Train again with a lower learning rate, or in bfloat16 instead of float16; an earlier checkpoint may be "
            "sound.",
        )
    elif math.isinf(factor.served):
        yield Problem(
            ProblemCode.OVERFLOW,
            f"It holds numbers that are too large for {dtype}, in which it would be served.",
            name,
            "Serve in bfloat16 (--dtype bfloat16), or train again with a lower learning rate.",
        )


def _strength(pair: Pair, a: _Factor, b: _Factor, base: Base) -> float | None:
    if not (math.isfinite(a.largest) and math.isfinite(b.largest)):
        return None
    norm = weight_norm(base, pair.module)
    if not norm:
        return None
    if max(a.largest, b.largest) > SQUARABLE:
        return math.inf if a.largest and b.largest and pair.scale else 0.0
    return abs(pair.scale) * math.sqrt(max(_product_squares(pair, a.values, b.values), 0.0)) / norm


def _product_squares(pair: Pair, a: Array, b: Array) -> float:
    """‖B·A‖² of a pair, or the sum of its experts'."""
    if not pair.experts:
        return _trace(a, b)
    count = pair.experts
    ranks = a.shape[0] // count
    rows = a.reshape(count, ranks, -1)
    columns = b.reshape(-1, count, ranks) if pair.grouped else b.reshape(-1, ranks, count).swapaxes(1, 2)
    return sum(_trace(rows[expert], columns[:, expert]) for expert in range(count))


def _trace(a: Array, b: Array) -> float:
    return float(np.einsum("ij,ji->", (b.T @ b).astype(np.float64), (a @ a.T).astype(np.float64)))


def _too_strong(strengths: Mapping[str, float]) -> Iterator[Problem]:
    for module, strength in strengths.items():
        if strength > STRENGTH_LIMIT:
            yield Problem(
                ProblemCode.OVERFLOW,
                f"Its change is more than {STRENGTH_LIMIT:g} times as large as the weight it changes; nothing of the "
                "base would be left.",
                module,
                "Check lora_alpha, r and use_rslora in adapter_config.json against those of the training, and that "
                "training did not diverge.",
            )


def _no_effect() -> Problem:
    return Problem(
        ProblemCode.NO_EFFECT,
        "It changes nothing: in every module lora_A, lora_B or the scale is zero, as before the first training step.",
        "",
        "Save it after training, from the model that was trained: model.save_pretrained(DIR).",
    )


def _squares(base: Base, tensor: str) -> float | None:
    entry = base.tensors[tensor].entry
    if entry.dtype not in FLOATS or 0 in entry.shape:
        return None
    rows, size = entry.shape[0], math.prod(entry.shape)
    if size <= SAMPLE:
        return _sum_of_squares(base.read_rows(tensor, 0, rows))
    block = max(1, SAMPLE // BLOCKS // (size // rows))
    starts = [int(start) for start in np.linspace(0, rows - block, BLOCKS)]
    return sum(_sum_of_squares(base.read_rows(tensor, start, block)) for start in starts) * rows / (block * BLOCKS)


def _sum_of_squares(array: Array) -> float:
    values = as_float32(array).reshape(-1)
    return float(np.dot(values, values))
