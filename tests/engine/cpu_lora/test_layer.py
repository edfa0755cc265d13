"""A fused layer against the plain formula in 64 bit: each row its own adapter, rows without one untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.engine

INPUTS, SPANS, SLOTS = 64, ((0, 64), (64, 96), (96, 128)), 5
ADAPTER = st.tuples(*[st.sampled_from([0, 1, 3, 16, 40, 320])] * len(SPANS))
STEP = st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=24)
MANY = st.tuples(st.integers(0, SLOTS - 1), st.integers(96, 130))


def kind(dtype: str, packed: bool) -> Any:
    import torch

    from service.engine.cpu_lora.kind import Kind
    from service.engine.cpu_lora.products import Plain, products_for

    numbers = getattr(torch, dtype)
    widths = (INPUTS, *(end - begin for begin, end in SPANS))
    return Kind(INPUTS, SPANS, numbers, SLOTS, products_for(numbers, widths) if packed else Plain())


def drawn(ranks: tuple[int, ...], seed: int, dtype: Any) -> tuple[list[Any], list[Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    a = [torch.randn(r, INPUTS, generator=generator).to(dtype) if r else None for r in ranks]
    b = [
        torch.randn(end - begin, r, generator=generator).to(dtype) if r else None
        for r, (begin, end) in zip(ranks, SPANS, strict=True)
    ]
    return a, b


def expected(y: torch.Tensor, x: torch.Tensor, slots: list[int], adapters: dict[int, Any]) -> tuple[Any, Any]:
    """The sum in 64 bit, and the size of what was summed up, which is what rounding is measured by."""
    total, size = y.double(), y.double().abs()
    for row, slot in enumerate(slots):
        if slot not in adapters:
            continue
        for a, b, span in zip(*adapters[slot], SPANS, strict=True):
            if a is not None:
                total[row, slice(*span)] += x[row].double() @ a.double().T @ b.double().T
                size[row, slice(*span)] += x[row].double().abs() @ a.double().abs().T @ b.double().abs().T
    return total, size


@pytest.mark.parametrize(("dtype", "packed"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ranks=st.dictionaries(st.integers(0, SLOTS - 1), ADAPTER, max_size=SLOTS),
    replaced=st.dictionaries(st.integers(0, SLOTS - 1), ADAPTER, max_size=2),
    few=STEP,
    many=st.lists(MANY, max_size=1),
)
def test_sums_are_exact_to_rounding(
    dtype: str, packed: bool, ranks: dict[int, Any], replaced: dict[int, Any], few: list[int], many: list[Any]
) -> None:
    """Any ranks, slices that are absent, empty slots, slots that were filled before, few rows and many."""
    import torch

    from service.engine.cpu_lora.layer import Layer
    from service.engine.cpu_lora.step import Step
    from service.engine.cpu_lora.weights import Weights

    shape = kind(dtype, packed)
    layer, adapters = Layer(shape), {}
    slots = few + [slot for slot, count in many for _ in range(count)]
    torch.manual_seed(len(slots))
    x = torch.randn(len(slots), INPUTS).to(shape.dtype)
    for seed, filling in ((1, ranks), (2, replaced)):
        for slot, each in filling.items():
            adapters[slot] = drawn(each, seed * 100 + slot, shape.dtype)
            layer.put(slot, Weights.of(shape, *adapters[slot]))
        step = Step(torch.tensor(slots))
        y = torch.randn(len(slots), SPANS[-1][1]).to(shape.dtype)
        total, size = expected(y, x, slots, adapters)
        given_y = y.clone()
        layer.add(y, x, step)
        rounding = 2.0**-7 if shape.dtype is torch.bfloat16 else 2.0**-20
        assert ((y.double() - total).abs() <= rounding * size).all()
        nobodys = [
            row
            for row, slot in enumerate(slots)
            if slot not in adapters or not any(each is not None for each in adapters[slot][0])
        ]
        assert torch.equal(y[nobodys], given_y[nobodys])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 120])
def test_what_is_not_finite_stays_with_its_adapter(poison: float, count: int) -> None:
    """Neighbours in the same product, and rows of the base between them, come out bit for bit as without it."""
    import torch

    from service.engine.cpu_lora.layer import Layer
    from service.engine.cpu_lora.step import Step
    from service.engine.cpu_lora.weights import Weights

    shape = kind("bfloat16", packed=True)
    slots = [0, 1, -1, 2, 1, 0] + [1] * count
    x = torch.randn(len(slots), INPUTS).bfloat16()
    y = torch.randn(len(slots), SPANS[-1][1]).bfloat16()
    answers = []
    for bad in (False, True):
        layer = Layer(shape)
        for slot in range(3):
            a, b = drawn((16, 4, 8), slot, shape.dtype)
            if bad and slot == 1:
                a[0][:], b[1][:] = poison, poison
            layer.put(slot, Weights.of(shape, a, b))
        answer = y.clone()
        layer.add(answer, x, Step(torch.tensor(slots)))
        answers.append(answer)
    others = [row for row, slot in enumerate(slots) if slot != 1]
    assert torch.equal(answers[0][others], answers[1][others])
    assert not answers[1][1].isfinite().all()


def test_ten_thousand_activations_leave_memory_as_it_was() -> None:
    """Slots take adapters of changing forms, in turn; what a form no longer needs is given back."""
    import resource

    import torch

    from service.engine.cpu_lora.layer import Layer
    from service.engine.cpu_lora.step import Step
    from service.engine.cpu_lora.weights import Weights

    shape = kind("bfloat16", packed=True)
    layer = Layer(shape)
    weights = [Weights.of(shape, *drawn(ranks, 1, shape.dtype)) for ranks in [(4, 0, 4), (16, 16, 16), (64, 64, 64)]]
    x, y = torch.randn(5, INPUTS).bfloat16(), torch.zeros(5, SPANS[-1][1]).bfloat16()

    def activate(times: int) -> None:
        for number in range(times):
            layer.put(number % SLOTS, weights[number % len(weights)])
            layer.add(y, x, Step(torch.tensor([0, 1, 2, 3, 4])))

    activate(1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    activate(10_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_slots_are_filled_within_steps_and_between_them() -> None:
    """vLLM's steps run in inference mode, whose tensors can't be written elsewhere; a proof fills a slot elsewhere."""
    import torch

    from service.engine.cpu_lora.layer import Layer
    from service.engine.cpu_lora.weights import Weights

    shape = kind("bfloat16", packed=True)
    layer = Layer(shape)
    for slot, within in enumerate((True, False, True)):
        with torch.inference_mode(within):
            layer.put(slot, Weights.of(shape, *drawn((16, 4, 8), slot, shape.dtype)))
        assert layer.arrived(slot) == 3


def test_arrival_is_proven_by_what_is_in_the_slot() -> None:
    """Slices count once each; none does when the slot holds something else than was put there."""
    import torch

    from service.engine.cpu_lora.layer import Layer
    from service.engine.cpu_lora.weights import Weights

    shape = kind("bfloat16", packed=True)
    layer = Layer(shape)
    a, b = drawn((16, 0, 8), 3, shape.dtype)
    weights = Weights.of(shape, a, b)
    assert weights is not None
    layer.put(2, weights)
    assert layer.arrived(2) == 2
    assert layer.arrived(1) == 0
    with torch.inference_mode():
        layer._arenas[weights.form]._a[2].zero_()
    assert layer.arrived(2) == 0


def test_other_processors_get_torchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packed kernels raise, as they do on a processor without AVX-512, LoRA runs all the same."""
    import torch

    from service.engine.cpu_lora import products

    def refuse(*_: object) -> None:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(products.Vnni, "multiply", refuse)
    products._tried.cache_clear()
    try:
        assert isinstance(products.products_for(torch.bfloat16, (64, 64)), products.Plain)
    finally:
        products._tried.cache_clear()
