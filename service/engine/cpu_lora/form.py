"""How an adapter's weights of one fused layer lie in memory. Pure.

The kernels want multiples of 32, and adapters of one form share products; so ranks are rounded up to a few widths,
and slices of small rank stand beside each other under one product. docs/performance.md has the figures behind the two
numbers here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Span: TypeAlias = tuple[int, int]
"""First column and the one after the last."""

JOINT = 64
"""Up to so many columns the slices of a fused layer share one product; beyond, its zeros cost more than a call."""

WIDTHS = (32, 64, 128, 256, 320, 512)
"""vLLM's ranks, from the least that the kernels take."""


@dataclass(frozen=True, slots=True)
class Form:
    """The products with B that an adapter takes part in, and how wide they are."""

    spans: tuple[Span, ...]
    """The output columns of each product."""
    width: int
    """Rows of A, and columns of B, that belong to each span; zero beyond the adapter's rank."""

    def weights(self, inputs: int) -> int:
        """Numbers one adapter has in this form."""
        return self.width * (len(self.spans) * inputs + sum(end - begin for begin, end in self.spans))


def form_of(spans: Sequence[Span], ranks: Sequence[int]) -> Form | None:
    """The form for an adapter with these ranks, one a slice, 0 where it has none; None where it has nothing."""
    if not any(ranks):
        return None
    if sum(ranks) <= JOINT:
        return Form(((spans[0][0], spans[-1][1]),), _padded(sum(ranks)))
    present = tuple(span for span, rank in zip(spans, ranks, strict=True) if rank)
    return Form(present, _padded(max(ranks)))


def _padded(rank: int) -> int:
    return next((width for width in WIDTHS if width >= rank), -(-rank // WIDTHS[0]) * WIDTHS[0])
