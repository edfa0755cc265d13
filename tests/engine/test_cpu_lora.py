"""LoRA on the CPU against the plain formula: each row its own adapter, rows without one untouched."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engine
SLOTS, RANK, INPUTS, WIDTHS = 3, 8, 20, (12, 6)


@pytest.mark.parametrize(
    "slots",
    [
        [-1, -1, -1],
        [0, 0, 0],
        [2, -1, 0, 0, 2, 1, -1],
        [0, 0, 1, 1, -1, -1],
    ],
)
def test_each_row_has_its_own_adapter(slots: list[int]) -> None:
    """y[row] += x[row]·Aᵀ·Bᵀ of the row's slot at its true rank; garbage beyond that rank is never read."""
    import torch

    from service.engine.cpu_lora import GroupedLoRA, group_rows

    torch.manual_seed(0)
    a = [torch.randn(SLOTS, 1, RANK, INPUTS) for _ in WIDTHS]
    b = [torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS]
    ranks = {0: 8, 1: 4, 2: 2}
    for slot, rank in ranks.items():
        for part in a:
            part[slot, 0, rank:] = float("nan")
        for part in b:
            part[slot, 0, :, rank:] = float("nan")
    wrapper = GroupedLoRA(64, max_batches=8, device="cpu")
    wrapper.ranks = ranks
    wrapper._groups = group_rows(torch.tensor(slots))
    x, y = torch.randn(len(slots), INPUTS), torch.randn(len(slots), sum(WIDTHS))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            rank = ranks[slot]
            parts = [
                x[row] @ a_part[slot, 0, :rank].T @ b_part[slot, 0, :, :rank].T
                for a_part, b_part in zip(a, b, strict=True)
            ]
            expected[row] += torch.cat(parts) * 0.5
    wrapper.add_lora_linear(y, x, a, b, 0.5, WIDTHS)
    torch.testing.assert_close(y, expected)
