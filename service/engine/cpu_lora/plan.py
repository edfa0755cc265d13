"""Which rows of a step are multiplied with whose weights, and in how many products. Pure.

The rule is a model of the cost, with three numbers that were measured (docs/performance.md has them): a call costs
as much as so many multiplications, reading a weight as much as multiplying it with so many rows, and from so many
rows on an adapter's own, unpadded weights are the cheaper ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MANY_ROWS = 96
"""From here on an adapter goes by itself: no padding to 32 columns, and the sum is made within the product."""

READ = 10
"""Reading a weight from memory takes as long as multiplying it with so many rows."""

CALL = 3_500_000
"""What a batch costs before it multiplies anything, in multiplications."""

JOINT = 64
"""Up to so many columns the slices of a fused layer share one product; beyond, its zeros cost more than a call."""

WIDTHS = (32, 64, 128, 256, 320, 512)
"""Columns a slice is padded to: the kernels want multiples of 32, and few different widths share more products."""

Span: TypeAlias = tuple[int, int]
"""First output column and the one after the last."""


@dataclass(frozen=True, slots=True)
class Form:
    """How an adapter's weights of one fused layer lie in an arena. Adapters of one form share products."""

    spans: tuple[Span, ...]
    """The output columns of each product with B."""
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
    return next((width for width in WIDTHS if width >= rank), -(-rank // 32) * 32)


@dataclass(frozen=True, slots=True)
class Batch:
    """One product over neighbouring slots, as many rows deep for each."""

    form: Form
    first: int
    """The first slot; between it and the last there may be some that nobody needs."""
    slots: int
    depth: int
    rows: tuple[tuple[int, ...], ...]
    """The rows of each slot, at most `depth`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one layer does in one step."""

    batches: tuple[Batch, ...]
    alone: tuple[int, ...]
    """Slots that go by themselves."""


def plan(rows: Mapping[int, Sequence[int]], forms: Mapping[int, Form], inputs: int) -> Plan:
    """Cover the rows of every slot that has weights in this layer, as cheaply as the model of the cost knows.

    rows: slot → its rows in this step. forms: slot → the form its weights are packed in; a slot of `rows` that is
    missing here hasn't been packed. inputs: the layer's input width.
    """
    packed = {slot: mine for slot, mine in rows.items() if slot in forms and len(mine) < MANY_ROWS}
    by_form: dict[Form, list[int]] = {}
    for slot in sorted(packed):
        by_form.setdefault(forms[slot], []).append(slot)
    batches = [
        _batch(form, run, packed)
        for form, slots in by_form.items()
        for run in _runs(slots, packed, form.weights(inputs))
    ]
    return Plan(tuple(batches), tuple(slot for slot in rows if slot not in packed))


def _batch(form: Form, run: Sequence[int], rows: Mapping[int, Sequence[int]]) -> Batch:
    slots = range(run[0], run[-1] + 1)
    mine = set(run)
    layout = tuple(tuple(rows[slot]) if slot in mine else () for slot in slots)
    return Batch(form, run[0], len(slots), max(map(len, layout)), layout)


def _runs(slots: Sequence[int], rows: Mapping[int, Sequence[int]], weights: int) -> Iterator[Sequence[int]]:
    """Cut sorted slots into the runs whose costs sum up to the least."""
    best = [0.0]
    cuts = [0]
    for end in range(1, len(slots) + 1):
        depth, least, cut = 0, float("inf"), 0
        for begin in range(end - 1, -1, -1):
            depth = max(depth, len(rows[slots[begin]]))
            span = slots[end - 1] - slots[begin] + 1
            cost = best[begin] + CALL + span * weights * max(depth, READ)
            if cost < least:
                least, cut = cost, begin
        best.append(least)
        cuts.append(cut)
    ends = []
    end = len(slots)
    while end:
        ends.append(end)
        end = cuts[end]
    begin = 0
    for end in reversed(ends):
        yield slots[begin:end]
        begin = end
