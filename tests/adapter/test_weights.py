from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mixtures
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file
from tiny_model import HIDDEN

from service.adapter import weights
from service.adapter.base import Base
from service.adapter.safetensors_header import TensorFile
from service.adapter.spec import codes
from service.adapter.weights import SERVING_TYPES, STRENGTH_LIMIT, Measurement, Pair, as_float32, measure, weight_norm

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "model.layers.0.self_attn.q_proj"
reals = st.floats(allow_nan=True, allow_infinity=True, width=32)


def measured(directory: Path, base: Base, a: Any, b: Any, dtype: str = "bfloat16", **pair: Any) -> Measurement:
    path = directory / "pair.safetensors"
    save_file({"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)}, path)
    fields = {"module": MODULE, "a": "a", "b": "b", "scale": 1.0} | pair
    with TensorFile(path.open("rb", buffering=0)) as file:
        return measure(file, [Pair(**fields)], (), base, dtype)


def matrices(rank: int, seed: int = 0) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    return tuple(numbers.normal(size=shape).astype(np.float32) for shape in ((rank, HIDDEN), (HIDDEN, rank)))


@given(st.integers(1, 8), st.integers(0, 1000), st.floats(-8, 8), st.sampled_from([np.float32, np.float16, np.float64]))
def test_strength_is_the_ratio_of_the_dense_norms(
    tmp_path: Path, tiny_base: Base, rank: int, seed: int, scale: float, dtype: Any
) -> None:
    a, b = (matrix.astype(dtype) for matrix in matrices(rank, seed))
    weight = tiny_base.read_rows(f"{MODULE}.weight", 0, HIDDEN).astype(np.float64)
    dense = np.linalg.norm(scale * b.astype(np.float64) @ a.astype(np.float64)) / np.linalg.norm(weight)
    found = measured(tmp_path, tiny_base, a, b, scale=scale)
    assert found.strength == pytest.approx(dense, rel=1e-4, abs=1e-9)
    assert found.strongest == MODULE


@given(arrays.arrays(np.float32, (2, 3), elements=reals), st.sampled_from(sorted(SERVING_TYPES)))
def test_values_are_judged_as_a_cast_would_leave_them(tmp_path: Path, tiny_base: Base, a: Any, dtype: str) -> None:
    with np.errstate(all="ignore"):
        cast = a.astype(SERVING_TYPES[dtype]).astype(np.float64)
    found = codes(
        measured(tmp_path, tiny_base, a, np.ones((3, 2), np.float32), dtype, module="unmeasured", scale=1).problems
    )
    assert ("not_finite" in found) == (not np.isfinite(a).all())
    assert ("overflow" in found) == (bool(np.isfinite(a).all()) and not np.isfinite(cast).all())
    assert ("no_effect" in found) == (not cast.any())


def test_a_module_too_strong_is_an_overflow(tmp_path: Path, tiny_base: Base) -> None:
    a, b = matrices(4)
    strength = measured(tmp_path, tiny_base, a, b).strength
    assert strength
    assert codes(measured(tmp_path, tiny_base, a, b, scale=0.99 * STRENGTH_LIMIT / strength).problems) == []
    assert codes(measured(tmp_path, tiny_base, a, b, scale=-1.01 * STRENGTH_LIMIT / strength).problems) == ["overflow"]


def test_finite_numbers_whose_squares_are_not(tmp_path: Path, tiny_base: Base) -> None:
    a, b = matrices(4)
    found = measured(tmp_path, tiny_base, a * 1e30, b)
    assert codes(found.problems) == ["overflow"]
    assert found.strength is None, "JSON has no word for it"
    assert found.strongest == MODULE


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("stored", ["stacked", "flipped", "single"])
def test_experts_are_measured_one_by_one(tmp_path: Path, stored: str, grouped: bool) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base", stored))
    pairs = mixtures.expert_pairs()["experts"]
    module = f"{mixtures.EXPERTS_PATH}.down_proj"
    weight = math.sqrt(sum(float(np.sum(_whole(base, name) ** 2)) for name in base.weights_of(module)))
    dense = math.sqrt(sum(float(np.sum((b @ a) ** 2)) for a, b in pairs))
    a, b = mixtures.packed(pairs, grouped=grouped)
    found = measured(tmp_path, base, a, b, module=module, experts=mixtures.EXPERTS, grouped=grouped)
    assert found.strength == pytest.approx(dense / weight, rel=1e-3)


def _whole(base: Base, tensor: str) -> Any:
    return base.read_rows(tensor, 0, base.tensors[tensor].entry.shape[0]).astype(np.float64)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_widening_bfloat16_is_a_conversion(values: Any) -> None:
    with np.errstate(all="ignore"):
        narrow = values.astype(ml_dtypes.bfloat16)
    assert np.array_equal(as_float32(narrow), narrow.astype(np.float32), equal_nan=True)


def test_the_norm_of_a_large_weight_is_taken_from_a_sample(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_norm.cache_clear()
    exact = weight_norm(tiny_base, MODULE)
    weight_norm.cache_clear()
    monkeypatch.setattr(weights, "SAMPLE", 128)
    monkeypatch.setattr(weights, "BLOCKS", 4)
    sampled = weight_norm(tiny_base, MODULE)
    weight_norm.cache_clear()
    assert sampled == pytest.approx(exact)


@given(st.floats(1e-3, 1e3))
def test_strength_grows_with_the_scale(tmp_path: Path, tiny_base: Base, factor: float) -> None:
    a, b = matrices(2)
    one, other = (measured(tmp_path, tiny_base, a, b, scale=scale).strength for scale in (1.0, factor))
    assume(one and other)
    assert other == pytest.approx(one * factor)
