"""LoRA on the CPU: the rows of a step grouped by adapter, then plain matrix products.

vLLM's own CPU path gathers one copy of the weights per row and lets rows without an adapter read the last slot's.
Here a row without an adapter is in no group, so nothing can reach it, and each group costs two products at the
rank its adapter really has, whatever rank the slots are padded to.

Loaded only inside vLLM's processes, by `service.engine.plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

if TYPE_CHECKING:
    from collections.abc import Sequence

Rows: TypeAlias = "torch.Tensor | slice"
"""Row numbers of one group; a slice where they are neighbours, which saves a gather."""


def group_rows(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """Slot → its rows, for one step. `slots` holds a slot number per row, -1 for rows without an adapter."""
    groups: list[tuple[int, Rows]] = []
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        rows = torch.nonzero(slots == slot).flatten()
        first, last = int(rows[0]), int(rows[-1])
        neighbours = last - first + 1 == len(rows)
        groups.append((slot, slice(first, last + 1) if neighbours else rows))
    return groups


class GroupedLoRA(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM's types are not followed
    """Stands in for vLLM's wrapper on the CPU; `ranks` is kept by the plugin whenever a slot is filled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks: dict[int, int] = {}
        self._groups: list[tuple[int, Rows]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called once a step, before any layer."""
        super().update_metadata(*args, **kwargs)
        self._groups = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        """Add scale·(x·Aᵀ)·Bᵀ to y in place, group by group.

        x [rows, in], y [rows, sum(output_slices)]; A [slots, 1, rank, in] and B [slots, 1, out, rank] per slice.
        """
        for slot, rows in self._groups:
            inputs = x[rows]
            begin = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                rank = self.ranks.get(slot, a.shape[2])
                hidden = inputs @ a[slot, 0, :rank].t()
                _add(y[:, begin : begin + width], rows, hidden, b[slot, 0, :, :rank].t(), scale)
                begin += width


def _add(y: torch.Tensor, rows: Rows, hidden: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    if isinstance(rows, slice):
        y[rows].addmm_(hidden, b, alpha=scale)
    else:
        y.index_add_(0, rows, hidden @ b, alpha=scale)
