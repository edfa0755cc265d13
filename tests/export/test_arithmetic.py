"""The merge's arithmetic is PEFT's, for every shape, rank and feature, and rounds once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from service.export.arithmetic import (
    Experts,
    LowRank,
    Magnitude,
    TrainedTokens,
    all_finite,
    column_norms,
    rounded,
    row_blocks,
)
from service.export.verify import last_place_steps

if TYPE_CHECKING:
    from service.export.arithmetic import Patch

sizes = st.integers(1, 40)
QUICK = settings(max_examples=40, deadline=None)


class Wrapped(nn.Module):
    """One layer, by a name PEFT can target."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.layer(given)


def merged_by_peft(layer: nn.Module, seed: int, **fields: Any) -> tuple[Any, Any]:
    """The weight PEFT merges, and the wrapped layer before that."""
    torch.manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_()
    wrapped = get_peft_model(Wrapped(layer), LoraConfig(target_modules=["layer"], init_lora_weights=False, **fields))
    inner = wrapped.base_model.model.layer
    if fields.get("use_dora"):
        with torch.no_grad():
            inner.lora_magnitude_vector["default"].weight.mul_(1.5)
    return wrapped, inner


def by_rows(patch: Patch, weight: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
    """The patch applied block by block, as the merge does."""
    starts = range(0, len(weight), step)
    return np.concatenate([patch.apply(weight[first : first + step], first) for first in starts])


def agree(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> bool:
    """Equal in float32 up to its last bits, and once rounded by one step at most."""
    ours_rounded = torch.from_numpy(ours.copy()).to(torch.bfloat16)
    steps, _ = last_place_steps(ours_rounded, theirs.detach().to(torch.bfloat16))
    return steps <= 1 and np.allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


@QUICK
@given(sizes, sizes, st.integers(1, 8), st.integers(1, 64), st.booleans(), st.booleans(), st.integers(1, 50), sizes)
def test_a_matrix(
    inputs: int, outputs: int, rank: int, alpha: int, rslora: bool, dora: bool, step: int, seed: int
) -> None:
    wrapped, inner = merged_by_peft(
        nn.Linear(inputs, outputs, bias=False), seed, r=rank, lora_alpha=alpha, use_rslora=rslora, use_dora=dora
    )
    weight = inner.base_layer.weight.detach().numpy().copy()
    pair = LowRank(_array(inner.lora_A), _array(inner.lora_B), inner.scaling["default"])
    magnitude = inner.lora_magnitude_vector["default"].weight.detach().numpy() if dora else None
    patch = pair if magnitude is None else Magnitude(pair, magnitude)
    assert agree(by_rows(patch, weight, step), wrapped.merge_and_unload().layer.weight)


@QUICK
@given(sizes, sizes, st.integers(1, 8), st.booleans(), st.integers(1, 50), sizes)
def test_a_matrix_that_lies_the_other_way_round(
    inputs: int, outputs: int, rank: int, dora: bool, step: int, seed: int
) -> None:
    wrapped, inner = merged_by_peft(Conv1D(outputs, inputs), seed, r=rank, use_dora=dora, fan_in_fan_out=True)
    weight = inner.base_layer.weight.detach().numpy().copy()
    pair = LowRank(_array(inner.lora_A), _array(inner.lora_B), inner.scaling["default"], transposed=True)
    patch: Patch = pair
    if dora:
        blocks = ((first, weight[first : first + step]) for first in range(0, len(weight), step))
        magnitude = inner.lora_magnitude_vector["default"].weight.detach().numpy()
        patch = Magnitude(pair, magnitude, column_norms(pair, blocks))
    assert agree(by_rows(patch, weight, step), wrapped.merge_and_unload().layer.weight)


@QUICK
@given(sizes, sizes, st.integers(1, 8), st.integers(1, 50), sizes)
def test_an_embedding(rows: int, width: int, rank: int, step: int, seed: int) -> None:
    wrapped, inner = merged_by_peft(nn.Embedding(rows, width), seed, r=rank)
    weight = inner.base_layer.weight.detach().numpy().copy()
    a, b = inner.lora_embedding_A["default"], inner.lora_embedding_B["default"]
    pair = LowRank(a.detach().numpy(), b.detach().numpy(), inner.scaling["default"], transposed=True)
    assert agree(by_rows(pair, weight, step), wrapped.merge_and_unload().layer.weight)


@QUICK
@given(st.integers(1, 5), st.integers(1, 6), sizes, sizes, st.booleans())
def test_experts_are_unpacked_as_peft_packs_them(
    count: int, rank: int, inputs: int, outputs: int, transposed: bool
) -> None:
    numbers = np.random.default_rng(0)
    a = numbers.normal(size=(count * rank, inputs)).astype(np.float32)
    b = numbers.normal(size=(outputs, rank * count)).astype(np.float32)
    weight = numbers.normal(size=(count, inputs, outputs) if transposed else (count, outputs, inputs))
    packed_a = torch.from_numpy(a).reshape(count, -1, inputs)
    packed_b = torch.from_numpy(b).reshape(outputs, -1, count)
    formula = "o r e, e r i -> e i o" if transposed else "o r e, e r i -> e o i"
    expected = torch.from_numpy(weight).float() + torch.einsum(formula, packed_b, packed_a) * 2.0
    stack = Experts.unpack(a, b, count, 2.0, transposed=transposed)
    assert agree(by_rows(stack, weight.astype(np.float32), 2), expected)
    if not transposed:
        half = stack.expert(0, slice(0, outputs // 2)).apply(weight[0, : outputs // 2].astype(np.float32), 0)
        assert np.allclose(half, expected[0, : outputs // 2], rtol=1e-4, atol=1e-5)


def test_trained_tokens_take_their_rows_and_no_others() -> None:
    weight = np.zeros((10, 3), np.float32)
    values = np.array([[1, 1, 1], [2, 2, 2]], np.float32)
    merged = by_rows(TrainedTokens((7, 2), values), weight, 4)
    assert merged[7].tolist() == [1, 1, 1]
    assert merged[2].tolist() == [2, 2, 2]
    assert not merged[[0, 1, 3, 4, 5, 6, 8, 9]].any()


@QUICK
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_rounding_is_torchs(numbers: list[float]) -> None:
    """To the nearest, ties to even, in both types; what is too large becomes infinite."""
    array = np.array(numbers, np.float32)
    for stored, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        theirs = torch.from_numpy(array).to(dtype)
        assert rounded(array, stored).astype(np.float32).tobytes() == theirs.float().numpy().tobytes()


@given(st.integers(0, 1000), st.integers(1, 10_000), st.integers(1, 100_000))
def test_blocks_cover_every_row_once(count: int, row_bytes: int, limit: int) -> None:
    blocks = list(row_blocks(count, row_bytes, limit))
    assert [row for first, size in blocks for row in range(first, first + size)] == list(range(count))
    assert all(size == 1 or size * row_bytes <= limit for _, size in blocks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    assert not all_finite(rounded(np.array([1.0, bad], np.float32), "BF16"))
    assert all_finite(np.array([1, 2], np.int64))


def _array(layers: nn.ModuleDict) -> np.ndarray[Any, Any]:
    return layers["default"].weight.detach().numpy()
