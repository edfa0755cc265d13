"""Figures and ratios, held to their definitions."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.load.answer import Answer
from service.load.figures import Figures, Quantiles
from service.load.metric import METRICS
from service.load.ratio import ENOUGH, Ratio, spread, student

seconds = st.floats(1e-4, 1e4)
pairs = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30)


def answer(began: float, arrivals: list[float], **how: object) -> Answer:
    return Answer("m", began, max([began, *arrivals]), len(arrivals), 7, tuple(arrivals), **how)


@given(st.lists(seconds, min_size=1))
def test_quantiles_are_ordered_and_inside(values: list[float]) -> None:
    found = Quantiles.of(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p90 <= found.p99 <= found.most == max(values)
    assert found.p50 == pytest.approx(statistics.median(values))


def test_nothing_measured_has_no_quantiles() -> None:
    assert Quantiles.of([]) is None


@given(st.lists(st.lists(seconds, min_size=1, max_size=5), max_size=8), st.integers(0, 3))
def test_figures_add_up(streams: list[list[float]], failed: int) -> None:
    sound = [answer(0.0, list(np.cumsum(gaps))) for gaps in streams]
    figures = Figures.among([*sound, *[answer(0.0, [1.0], failure="gone")] * failed], 10.0)
    assert (figures.requests, figures.failures) == (len(streams) + failed, failed)
    assert figures.tokens == sum(map(len, streams)) == pytest.approx(figures.tokens_per_second * 10)
    assert figures.prompt_tokens == 7 * len(streams)
    assert (figures.ttft is None) == (not streams)
    if figures.ttft:
        assert figures.ttft.most == pytest.approx(max(gaps[0] for gaps in streams))
    later = [gap for gaps in streams for gap in gaps[1:]]
    assert (figures.itl.most if figures.itl else None) == (pytest.approx(max(later), rel=1e-3) if later else None)


def test_every_metric_finds_its_number() -> None:
    figures = Figures.among([answer(1.0, [2.0, 4.0, 8.0])], 10.0)
    found = {name: metric.of(figures) for name, metric in METRICS.items()}
    assert found["tokens_per_second"] == pytest.approx(0.3)
    assert (found["ttft_p50"], found["itl_p50"], found["tpot_p50"], found["e2el_p50"]) == (1, 3, 3, 7)
    assert None not in found.values()
    assert METRICS["ttft_p50"].of(Figures.among([], 0)) is None


@given(pairs)
def test_a_ratio_turned_round_is_its_inverse(known: list[tuple[float, float]]) -> None:
    one, other = Ratio.of(known), Ratio.of((b, a) for a, b in known)
    assert one
    assert other
    assert one.low == pytest.approx(1 / other.high)
    assert one.pairs == len(known)
    if one.at_least is not None and other.at_most is not None:
        assert one.at_least == pytest.approx(1 / other.at_most)


@given(pairs)
def test_bounds_lie_around_the_geometric_mean_and_want_enough_pairs(known: list[tuple[float, float]]) -> None:
    ratio = Ratio.of(known)
    assert ratio
    assert ratio.low <= ratio.median <= ratio.high
    assert (ratio.at_least is None) == (ratio.at_most is None) == (len(known) < ENOUGH)
    if ratio.at_least is not None and ratio.at_most is not None:
        mean = math.exp(statistics.fmean(math.log(a / b) for a, b in known))
        assert ratio.at_least <= mean * (1 + 1e-9)
        assert ratio.at_most >= mean * (1 - 1e-9)


def test_what_was_not_measured_is_no_pair() -> None:
    assert Ratio.of([(None, 1.0), (1.0, None), (0.0, 1.0)]) is None
    ratio = Ratio.of([(None, 1.0), (2.0, 1.0)])
    assert (ratio and ratio.median, ratio and ratio.pairs) == (2.0, 1)


@pytest.mark.parametrize(("freedom", "known"), [(4, 2.1318), (5, 2.0150), (9, 1.8331), (29, 1.6991), (10_000, 1.6450)])
def test_students_t_is_that_of_the_tables(freedom: int, known: float) -> None:
    assert student(freedom) == pytest.approx(known, rel=2e-3)


def test_a_bound_holds_as_often_as_it_says() -> None:
    """Of two servers that are equal but for noise, 95 of 100 lower bounds are below 1."""
    choose = random.Random(1)
    trials = [
        Ratio.of((choose.lognormvariate(0, 0.1), choose.lognormvariate(0, 0.1)) for _ in range(6)) for _ in range(2000)
    ]
    held = sum(ratio is not None and ratio.at_least is not None and ratio.at_least <= 1 for ratio in trials)
    assert held / len(trials) == pytest.approx(0.95, abs=0.015)


def test_for_people() -> None:
    assert str(Ratio.of([(1, 2), (3, 4)])) == "0.62 (0.50-0.75)"
    assert str(Ratio.of([(1, 2)] * 5)) == "0.50 (0.50-0.50, 95 %: ≥ 0.50, ≤ 0.50)"
    assert (str(Ratio.of([(1, 2)])), spread([3, 1, 2]), spread([3])) == ("0.50", "2 (1-3)", "3")
