"""One fused layer and the adapters in its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from service.engine.cpu_lora.step import NOTHING

if TYPE_CHECKING:
    from service.engine.cpu_lora.errand import Rows
    from service.engine.cpu_lora.form import Form
    from service.engine.cpu_lora.kind import Kind
    from service.engine.cpu_lora.products import Products
    from service.engine.cpu_lora.step import Step
    from service.engine.cpu_lora.weights import Weights


class Arena:
    """The packed weights of every slot in one form. The system gives a slot its memory when it is first written."""

    def __init__(self, kind: Kind, form: Form) -> None:
        shape = (kind.slots, form.width * len(form.spans), kind.inputs)
        self._a = torch.empty(shape, dtype=kind.dtype)
        self._b = [torch.empty((kind.slots, end - begin, form.width), dtype=kind.dtype) for begin, end in form.spans]
        self._views: dict[tuple[int, int], tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def write(self, slot: int, weights: Weights) -> None:
        """Copy an adapter's weights into its slot."""
        self._a[slot].copy_(weights.a)
        for target, b in zip(self._b, weights.b, strict=True):
            target[slot].copy_(b)

    def holds(self, slot: int, weights: Weights) -> bool:
        """Whether the slot has these weights, number by number."""
        pairs = [(self._a, weights.a), *zip(self._b, weights.b, strict=True)]
        return all(torch.equal(target[slot], source) for target, source in pairs)

    def weights(self, first: int, slots: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A, and B for each span, of neighbouring slots."""
        views = self._views.get((first, slots))
        if views is None:
            last = first + slots
            views = self._views[first, slots] = (self._a[first:last], [b[first:last] for b in self._b])
        return views


class Layer:
    """What is in the slots of one fused layer, and what it adds to a step. Slots change between steps only."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._weights: dict[int, Weights] = {}
        self._forms: dict[int, Form] = {}
        self._arenas: dict[Form, Arena] = {}
        self._route = NOTHING
        self._step: Step | None = None

    def put(self, slot: int, weights: Weights | None) -> None:
        """What is in a slot from now on; None is nothing."""
        self._step = None
        self._weights.pop(slot, None)
        left = self._forms.pop(slot, None)
        if weights is not None:
            self._write(slot, weights)
        if left is not None and left not in self._forms.values():
            del self._arenas[left]

    def _write(self, slot: int, weights: Weights) -> None:
        # What a step makes can't be written outside of its inference mode, where proofs fill slots too.
        with torch.inference_mode():
            if weights.form not in self._arenas:
                self._arenas[weights.form] = Arena(self.kind, weights.form)
            self._arenas[weights.form].write(slot, weights)
        self._weights[slot] = weights
        self._forms[slot] = weights.form

    def arrived(self, slot: int) -> int:
        """How many slices of the layer have weights of the adapter in this slot that aren't all zero."""
        weights = self._weights.get(slot)
        if weights is None or not self._arenas[weights.form].holds(slot, weights):
            return 0
        return sum(weights.effects)

    def add(self, y: torch.Tensor, x: torch.Tensor, step: Step) -> None:
        """Add what the adapters of the step say to y [rows, outputs], in place. x [rows, inputs]."""
        if self._step is not step:
            self._route, self._step = step.route(self.kind, self._forms), step
        route = self._route
        for errand in route.errands:
            batch = errand.batch
            errand.run(y, x, self._arenas[batch.form].weights(batch.first, batch.slots))
        for slot, rows in route.alone:
            _add_alone(y, x, rows, self._weights[slot], self.kind.products)


def _add_alone(y: torch.Tensor, x: torch.Tensor, rows: Rows, weights: Weights, products: Products) -> None:
    """One adapter's rows, with each slice's B as it was loaded."""
    inputs = x[rows].unsqueeze(0)
    hidden = x.new_empty((1, inputs.shape[1], len(weights.a)))
    products.multiply(hidden, inputs, weights.a.unsqueeze(0))
    for part in weights.slices:
        mine, target = hidden[0, :, slice(*part.columns)], y[:, slice(*part.span)]
        if isinstance(rows, slice):
            target[rows].addmm_(mine, part.b.t())
        else:
            target.index_add_(0, rows, mine @ part.b.t())
