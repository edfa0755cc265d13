"""One adapter's weights of one fused layer, at their own ranks, as they were loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.engine.cpu_lora.plan import Span


@dataclass(frozen=True, slots=True)
class Slice:
    """What the adapter adds to one slice of the layer's output (q, k or v; gate or up)."""

    index: int
    span: Span
    """Its columns of the output."""
    rows: Span
    """Its rows of A."""
    b: torch.Tensor
    """[outputs, rank]"""


@dataclass(frozen=True, slots=True)
class Parts:
    """A of all slices under each other, so that one product serves them all, and each slice's B."""

    a: torch.Tensor
    """[sum of ranks, inputs]"""
    slices: tuple[Slice, ...]

    @classmethod
    def of(
        cls, a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None], spans: Sequence[Span]
    ) -> Parts | None:
        """From a tensor or None for each slice; None where the adapter has nothing in this layer."""
        slices, given, begin = [], [], 0
        for index, (rows, columns, span) in enumerate(zip(a, b, spans, strict=True)):
            if rows is None or columns is None:
                continue
            end = begin + rows.shape[0]
            slices.append(Slice(index, span, (begin, end), columns.contiguous()))
            given.append(rows)
            begin = end
        if not slices:
            return None
        return cls(given[0].contiguous() if len(given) == 1 else torch.cat(given), tuple(slices))

    def ranks(self, slices: int) -> list[int]:
        """The rank in each of the layer's slices."""
        ranks = [0] * slices
        for part in self.slices:
            ranks[part.index] = part.b.shape[1]
        return ranks

    def effects(self) -> Iterator[bool]:
        """For each slice whether any of its weights isn't zero."""
        for part in self.slices:
            yield bool(self.a[slice(*part.rows)].any() or part.b.any())
