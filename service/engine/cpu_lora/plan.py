"""Which rows of a step are multiplied with whose weights, and in how many products. Pure.

The rule is a model of the cost, with three numbers that were measured (docs/performance.md has them): a call costs
as much as so many multiplications, reading a weight as much as multiplying it with so many rows, and from so many
rows on an adapter's own, unpadded weights are the cheaper ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.engine.cpu_lora.form import Form

MANY_ROWS = 96
"""From here on an adapter goes by itself: B as it was loaded, not padded, and the sum made within the product."""

READ = 10
"""Reading a weight from memory takes as long as multiplying it with so many rows."""

CALL = 3_500_000
"""What a batch costs before it multiplies anything, in multiplications."""


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

    rows: slot → its rows in this step. forms: slot → the form of what is in it; a slot with nothing for this layer
    is missing. inputs: the layer's input width.
    """
    few = sorted(slot for slot in rows.keys() & forms.keys() if len(rows[slot]) < MANY_ROWS)
    by_form: dict[Form, list[int]] = {}
    for slot in few:
        by_form.setdefault(forms[slot], []).append(slot)
    batches = [
        _batch(form, run, rows) for form, slots in by_form.items() for run in _runs(slots, rows, form.weights(inputs))
    ]
    return Plan(tuple(batches), tuple(slot for slot in rows if slot in forms and len(rows[slot]) >= MANY_ROWS))


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
