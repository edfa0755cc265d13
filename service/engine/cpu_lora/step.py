"""The rows of one step, sorted by adapter, and what layers do for them: worked out once for all that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from service.engine.cpu_lora.errand import Errand
from service.engine.cpu_lora.plan import plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.engine.cpu_lora.errand import Rows
    from service.engine.cpu_lora.form import Form
    from service.engine.cpu_lora.kind import Kind


@dataclass(frozen=True, slots=True)
class Route:
    """What layers of one kind whose slots hold the same forms do in a step."""

    errands: tuple[Errand, ...]
    alone: tuple[tuple[int, Rows], ...]
    """Slots that go by themselves, with their rows."""


NOTHING = Route((), ())


class Step:
    """Which rows belong to which slot. A step is as good as the next while the same rows belong to the same slots."""

    def __init__(self, slots: torch.Tensor) -> None:
        """`slots` holds a slot number per row, -1 for rows without an adapter."""
        self._count = len(slots)
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                rows.setdefault(slot, []).append(row)
        self._numbers = rows
        self.rows: dict[int, Rows] = {slot: _rows(numbers) for slot, numbers in rows.items()}
        self._routes: dict[tuple[Kind, tuple[tuple[int, Form], ...]], Route] = {}

    def route(self, kind: Kind, forms: Mapping[int, Form]) -> Route:
        """For a layer whose slots hold these forms."""
        key = (kind, tuple((slot, forms[slot]) for slot in self.rows if slot in forms))
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = self._plan(kind, forms)
        return route

    def _plan(self, kind: Kind, forms: Mapping[int, Form]) -> Route:
        chosen = plan(self._numbers, forms, kind.inputs)
        errands = tuple(Errand(batch, kind, self._count) for batch in chosen.batches)
        return Route(errands, tuple((slot, self.rows[slot]) for slot in chosen.alone))


def _rows(numbers: list[int]) -> Rows:
    neighbours = numbers[-1] - numbers[0] + 1 == len(numbers)
    return slice(numbers[0], numbers[-1] + 1) if neighbours else torch.tensor(numbers)
