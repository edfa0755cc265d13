"""An adapter put into its base, tensor by tensor and block by block: memory holds a few blocks, never a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from service.adapter.spec import ProblemCode
from service.export.arithmetic import (
    Experts,
    LowRank,
    Magnitude,
    Patch,
    Shift,
    TrainedTokens,
    all_finite,
    column_norms,
    rounded,
    row_blocks,
)
from service.export.changes import Bias, Change, OneExpert, Pair, Rows, Stack
from service.export.plan import FLOATS
from service.export.refusal import refuse
from service.export.shards import Planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.export.plan import Plan
    from service.export.tensors import Tensors

    Raw = np.ndarray[Any, Any]

BLOCK_BYTES = 8 << 20
"""Rows merged at once, counted in float32; about five times as much is in memory while they are."""
NARROW = frozenset({"F16", "BF16"})


@dataclass(slots=True)
class Merger:
    """The tensors of the result, computed when they are asked for.

    `adapter` may be None: then nothing is merged and the base's tensors are only cast. Floating-point tensors come out
    in `dtype` (safetensors' word), save those that a 16-bit model keeps in float32 on purpose.
    """

    base: Tensors
    adapter: Tensors | None
    plan: Plan
    dtype: str
    progress: Callable[[int], None] = lambda _: None
    """Told the bytes of every block that was made."""
    _cached: dict[str, Raw] = field(default_factory=dict)

    def tensors(self, *, shared_head: bool) -> list[Planned]:
        """Every tensor of the result, in the base's order; the output layer is left out when it is the embedding."""
        names = list(self.base.entries)
        if self.plan.head and self.plan.head not in names:
            names.insert(names.index(self.plan.embedding) + 1, self.plan.head)
        return [self._planned(name) for name in names if not (shared_head and name == self.plan.head)]

    def shares_head(self) -> bool:
        """Whether embedding and output layer come out equal, element for element."""
        embedding, head = self._planned(self.plan.embedding), self._planned(self.plan.head)
        if (embedding.shape, embedding.dtype) != (head.shape, head.dtype):
            return False
        pairs = zip(self._made(embedding), self._made(head), strict=True)
        return all(one.tobytes() == other.tobytes() for one, other in pairs)

    def blocks(self, tensor: Planned) -> Iterator[Raw]:
        """The rows of one tensor, block by block. Raises Refused when a number is not finite, or too large."""
        for block in self._made(tensor):
            self.progress(block.nbytes)
            yield block

    def _planned(self, name: str) -> Planned:
        source, key = self._origin(name)
        stored = self.base.entries[name if name in self.base.entries else self.plan.embedding].dtype
        return Planned(name, self._dtype(stored), source.entries[key].shape)

    def _dtype(self, stored: str) -> str:
        if stored not in FLOATS or (stored not in NARROW and self._narrow_base()):
            return stored
        return self.dtype

    def _narrow_base(self) -> bool:
        return main_dtype(self.base) in NARROW

    def _origin(self, name: str) -> tuple[Tensors, str]:
        """Where a tensor's rows come from before anything is added: the adapter, the base, or the base's embedding."""
        change = self.plan.changes.get(name, Change())
        if change.replacement and self.adapter is not None:
            return self.adapter, change.replacement
        return self.base, name if name in self.base.entries else self.plan.embedding

    def _made(self, tensor: Planned) -> Iterator[Raw]:
        recipe = self.plan.changes.get(tensor.name, Change()).recipe
        patch = self._patch(tensor, recipe) if recipe is not None else None
        for first, rows in self._rows(tensor):
            merged = rows if patch is None else patch.apply(rows.astype(np.float32), first)
            result = rounded(merged, tensor.dtype)
            if not all_finite(result):
                _refuse_not_finite(tensor, rows, merged)
            yield result

    def _rows(self, tensor: Planned) -> Iterator[tuple[int, Raw]]:
        source, key = self._origin(tensor.name)
        if not tensor.shape:
            yield 0, source.read(key)
            return
        row_bytes = 4 * int(np.prod(tensor.shape[1:], dtype=np.int64))
        for first, count in row_blocks(tensor.shape[0], row_bytes, BLOCK_BYTES):
            yield first, source.read_rows(key, first, count)

    def _patch(self, tensor: Planned, recipe: Pair | Stack | OneExpert | Bias | Rows) -> Patch:
        match recipe:
            case Pair():
                return self._pair(tensor, recipe)
            case Stack():
                return self._experts(recipe, transposed=recipe.transposed)
            case OneExpert():
                outputs = slice(recipe.first, recipe.first + recipe.outputs)
                return self._experts(recipe, transposed=False).expert(recipe.number, outputs)
            case Bias():
                return Shift(self._numbers(recipe.bias), recipe.scale)
            case Rows():
                return TrainedTokens(recipe.tokens, self._numbers(recipe.values))

    def _pair(self, tensor: Planned, recipe: Pair) -> Patch:
        pair = LowRank(self._numbers(recipe.a), self._numbers(recipe.b), recipe.scale, recipe.transposed)
        if not recipe.magnitude:
            return pair
        rows = ((first, block.astype(np.float32)) for first, block in self._rows(tensor))
        norms = column_norms(pair, rows) if recipe.transposed else None
        return Magnitude(pair, self._numbers(recipe.magnitude), norms)

    def _experts(self, recipe: Stack | OneExpert, *, transposed: bool) -> Experts:
        a, b = self._kept(recipe.a), self._kept(recipe.b)
        return Experts.unpack(a, b, recipe.experts, recipe.scale, transposed=transposed)

    def _kept(self, name: str) -> Raw:
        """A tensor of the adapter that many tensors of the base need one after the other."""
        if name not in self._cached:
            while len(self._cached) >= 4:  # noqa: PLR2004 (two pairs: gate and up, and down)
                del self._cached[next(iter(self._cached))]
            self._cached[name] = self._numbers(name)
        return self._cached[name]

    def _numbers(self, name: str) -> Raw:
        if self.adapter is None:
            raise RuntimeError(f"{name} is asked of an adapter that isn't there")
        numbers = self.adapter.read(name).astype(np.float32)
        if not all_finite(numbers):
            refuse(
                ProblemCode.NOT_FINITE,
                f"{name} holds numbers that are not finite: the training diverged.",
                name,
                "Convert an earlier checkpoint.",
            )
        return numbers


def main_dtype(tensors: Tensors) -> str:
    """The floating-point type that most of the weights have; "" for a model without any."""
    sizes: dict[str, int] = {}
    for entry in tensors.entries.values():
        if entry.dtype in FLOATS:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else ""


def total_bytes(tensors: Sequence[Planned]) -> int:
    """Bytes of all tensors, for a progress bar."""
    return sum(tensor.nbytes for tensor in tensors)


def _refuse_not_finite(tensor: Planned, rows: Raw, merged: Raw) -> None:
    if all_finite(rows) and all_finite(merged):
        refuse(
            ProblemCode.OVERFLOW,
            f"{tensor.name} holds numbers that are too large for {tensor.dtype}.",
            tensor.name,
            "Convert it to bfloat16, which has the range of float32: --dtype bfloat16.",
        )
    when = "" if not all_finite(rows) else " once merged"
    refuse(
        ProblemCode.NOT_FINITE,
        f"{tensor.name} holds numbers that are not finite{when}.",
        tensor.name,
        "Convert an earlier checkpoint, or save the model again.",
    )
