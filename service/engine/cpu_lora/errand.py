"""One batch of a step on its way: fetch its rows, multiply twice, add to where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.engine.cpu_lora.kind import Kind
    from service.engine.cpu_lora.plan import Batch

Rows: TypeAlias = "torch.Tensor | slice"
"""Row numbers; a slice where they are neighbours, which saves a gather."""


class Errand:
    """A batch with its room for intermediate results: fetch its rows, multiply twice, add to where they belong."""

    def __init__(self, batch: Batch, kind: Kind, count: int) -> None:
        self.batch = batch
        places = {row: slot * batch.depth + at for slot, rows in enumerate(batch.rows) for at, row in enumerate(rows)}
        size = batch.slots * batch.depth
        low, high = min(places), max(places) + 1
        in_order = len(places) == size == high - low and all(row - low == place for row, place in places.items())
        self._multiply = kind.products.multiply
        self._gather = None if in_order else _gather(places, size)
        self._target: Rows | None = slice(low, high) if (low, high) != (0, count) else None
        self._inverse: torch.Tensor | None = None
        if not in_order:
            if 2 * len(places) >= high - low:
                # The place after the last holds zeros, for rows in between that are somebody else's.
                self._inverse = torch.tensor([places.get(row, size) for row in range(low, high)])
            else:
                self._target = torch.tensor(list(places))
                self._inverse = torch.tensor(list(places.values()))
        self._shape = (batch.slots, batch.depth, kind.inputs)
        width, spans = batch.form.width, batch.form.spans
        hidden = torch.empty((batch.slots, batch.depth, len(spans) * width), dtype=kind.dtype)
        self._hidden = hidden
        self._hidden_of = [hidden[:, :, at * width : (at + 1) * width] for at in range(len(spans))]
        outputs = [end - begin for begin, end in spans]
        self._delta = torch.zeros((size + 1, sum(outputs)), dtype=kind.dtype)
        delta = self._delta[:size].view(batch.slots, batch.depth, sum(outputs))
        self._delta_of = list(delta.split(outputs, dim=2))
        self._in_order = self._delta[:size]
        whole = sum(outputs) == kind.spans[-1][1]
        self._columns = None if whole else list(zip(spans, outputs, strict=True))

    def run(self, y: torch.Tensor, x: torch.Tensor, weights: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
        """y[rows] += x[rows]·Aᵀ·Bᵀ of each row's slot."""
        if self._gather is not None:
            x = x.index_select(0, self._gather)
        elif self._target is not None:
            x = x[self._target]
        a, b = weights
        self._multiply(self._hidden, x.reshape(self._shape), a)
        for delta, hidden, expand in zip(self._delta_of, self._hidden_of, b, strict=True):
            self._multiply(delta, hidden, expand)
        self._give(y, self._in_order if self._inverse is None else self._delta.index_select(0, self._inverse))

    def _give(self, y: torch.Tensor, delta: torch.Tensor) -> None:
        if self._columns is None:
            _add(y, self._target, delta)
            return
        at = 0
        for (begin, end), width in self._columns:
            _add(y[:, begin:end], self._target, delta[:, at : at + width])
            at += width


def _gather(places: Mapping[int, int], size: int) -> torch.Tensor:
    """Which row stands at each place; places that nobody needs repeat one that is there."""
    rows = [next(iter(places))] * size
    for row, place in places.items():
        rows[place] = row
    return torch.tensor(rows)


def _add(y: torch.Tensor, target: Rows | None, delta: torch.Tensor) -> None:
    if target is None:
        y.add_(delta)
    elif isinstance(target, slice):
        y[target].add_(delta)
    else:
        y.index_add_(0, target, delta)
