"""One fused layer and the adapters in its slots."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch

from service.engine.cpu_lora.plan import MANY_ROWS, Batch, Form, form_of, plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.engine.cpu_lora.parts import Parts
    from service.engine.cpu_lora.plan import Span
    from service.engine.cpu_lora.products import Products

Rows: TypeAlias = "torch.Tensor | slice"
"""Row numbers; a slice where they are neighbours, which saves a gather."""

PACKING_SHARE = 0.1
"""Of the time, at most, for packing what has come into a slot; until then an adapter goes by itself."""


class Allowance:
    """Lets packing take a share of the time and no more, whatever comes into the slots and however fast."""

    def __init__(self, share: float = PACKING_SHARE) -> None:
        self._rest = 1 / share - 1
        self._until = 0.0

    def due(self) -> bool:
        """Whether a piece may be packed now."""
        return time.perf_counter() >= self._until

    def took(self, began: float) -> None:
        """A piece has been packed since `began`."""
        now = time.perf_counter()
        self._until = now + (now - began) * self._rest


class Step:
    """The rows of one step by slot, and what layers of one kind need to do for them, worked out once."""

    def __init__(self, slots: torch.Tensor) -> None:
        """`slots` holds a slot number per row, -1 for rows without an adapter."""
        self.count = len(slots)
        self.rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                self.rows.setdefault(slot, []).append(row)
        self.chosen = {slot: _rows(rows) for slot, rows in self.rows.items()}
        self.routes: dict[tuple[object, ...], Route] = {}


def _rows(rows: list[int]) -> Rows:
    neighbours = rows[-1] - rows[0] + 1 == len(rows)
    return slice(rows[0], rows[-1] + 1) if neighbours else torch.tensor(rows)


@dataclass(frozen=True)
class Kind:
    """What layers have in common that can share a route: shapes, type, way of multiplying."""

    inputs: int
    spans: tuple[Span, ...]
    dtype: torch.dtype
    capacity: int
    products: Products = field(compare=False)


class Arena:
    """The packed weights of every slot in one form. Memory is taken when a slot is first written."""

    def __init__(self, kind: Kind, form: Form) -> None:
        self._kind = kind
        self._form = form
        shape = (kind.capacity, form.width * len(form.spans), kind.inputs)
        self._a = torch.empty(shape, dtype=kind.dtype)
        self._b = [torch.empty((kind.capacity, end - begin, form.width), dtype=kind.dtype) for begin, end in form.spans]
        self._views: dict[tuple[int, int], tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def write(self, slot: int, parts: Parts) -> None:
        """Pack an adapter's weights into its slot, zeros beyond its ranks."""
        form, pack = self._form, self._kind.products.pack
        a = torch.zeros(self._a.shape[1:], dtype=self._a.dtype)
        b = [torch.zeros(each.shape[1:], dtype=each.dtype) for each in self._b]
        for part in parts.slices:
            rank = part.b.shape[1]
            # Slices that share a span have columns of their own in it.
            index, column = (0, part.rows[0]) if len(form.spans) == 1 else (form.spans.index(part.span), 0)
            begin = form.spans[index][0]
            a[index * form.width + column :][:rank] = parts.a[slice(*part.rows)]
            b[index][part.span[0] - begin : part.span[1] - begin, column : column + rank] = part.b
        self._a[slot] = pack(a)
        for target, weights in zip(self._b, b, strict=True):
            target[slot] = pack(weights)

    def weights(self, first: int, slots: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A, and B for each span, of neighbouring slots."""
        views = self._views.get((first, slots))
        if views is None:
            last = first + slots
            views = self._views[first, slots] = (self._a[first:last], [b[first:last] for b in self._b])
        return views


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


@dataclass(frozen=True, slots=True)
class Route:
    """A plan, ready to be followed by every layer of one kind whose slots hold the same forms."""

    errands: tuple[Errand, ...]
    alone: tuple[int, ...]


class Layer:
    """The slots of one fused layer: what is in them, and what it adds to a step.

    `parts` may change between any two steps; packed weights follow, within the allowance.
    """

    def __init__(self, kind: Kind, allowance: Allowance) -> None:
        self._kind = kind
        self._allowance = allowance
        self._parts: dict[int, Parts] = {}
        self._forms: dict[int, Form] = {}
        """Slot → the form it is packed in; only what is packed."""
        self._arenas: dict[Form, Arena] = {}
        self._route: Route | None = None
        self._step: Step | None = None

    def put(self, slot: int, parts: Parts | None) -> None:
        """What is in a slot from now on; None is nothing."""
        self._step = None
        self._parts.pop(slot, None)
        form = self._forms.pop(slot, None)
        if parts is not None:
            self._parts[slot] = parts
        if form is not None and form not in self._forms.values() and form != self._wanted(slot):
            del self._arenas[form]

    def parts(self, slot: int) -> Parts | None:
        """What is in a slot."""
        return self._parts.get(slot)

    def add(self, y: torch.Tensor, x: torch.Tensor, step: Step) -> None:
        """Add what the adapters of the step say to y [rows, outputs], in place. x [rows, inputs]."""
        if not self._parts:
            return
        route = self._route if self._step is step else self._find(step)
        if route is None:
            return
        for errand in route.errands:
            batch = errand.batch
            errand.run(y, x, self._arenas[batch.form].weights(batch.first, batch.slots))
        for slot in route.alone:
            _alone(y, x, step.chosen[slot], self._parts[slot])

    def _find(self, step: Step) -> Route | None:
        mine = [slot for slot in step.rows if slot in self._parts]
        unpacked = [slot for slot in mine if slot not in self._forms and len(step.rows[slot]) < MANY_ROWS]
        for slot in unpacked:
            if self._allowance.due():
                self._pack(slot)
        key = (self._kind, *((slot, self._forms.get(slot)) for slot in mine))
        route = step.routes.get(key)
        if route is None and mine:
            route = step.routes[key] = self._plan(step, mine)
        waits = any(slot not in self._forms for slot in unpacked)
        self._route, self._step = route, None if waits else step
        return route

    def _plan(self, step: Step, mine: Sequence[int]) -> Route:
        chosen = plan({slot: step.rows[slot] for slot in mine}, self._forms, self._kind.inputs)
        return Route(tuple(Errand(batch, self._kind, step.count) for batch in chosen.batches), chosen.alone)

    def _wanted(self, slot: int) -> Form | None:
        parts = self._parts.get(slot)
        return form_of(self._kind.spans, parts.ranks(len(self._kind.spans))) if parts else None

    def _pack(self, slot: int) -> None:
        began = time.perf_counter()
        form = self._wanted(slot)
        if form is None:
            return
        arena = self._arenas.get(form)
        if arena is None:
            arena = self._arenas[form] = Arena(self._kind, form)
        arena.write(slot, self._parts[slot])
        self._forms[slot] = form
        self._allowance.took(began)


def _alone(y: torch.Tensor, x: torch.Tensor, rows: Rows, parts: Parts) -> None:
    """One adapter's rows through its weights as they were loaded."""
    hidden = x[rows] @ parts.a.t()
    for part in parts.slices:
        mine, target = hidden[:, slice(*part.rows)], y[:, slice(*part.span)]
        if isinstance(rows, slice):
            target[rows].addmm_(mine, part.b.t())
        else:
            target.index_add_(0, rows, mine @ part.b.t())
