"""Two things measured in turns: how they compare, and how sure that is."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENOUGH: Final = 5
"""Pairs from which on a bound is given."""
Z: Final = statistics.NormalDist().inv_cdf(0.95)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One by the other, pair by pair. A pair is measured within minutes, so what slows the machine cancels."""

    median: float
    low: float
    high: float
    pairs: int
    bound: float | None
    """With 95 % confidence the true ratio (the geometric mean's) isn't below this; None with too few pairs."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> Self | None:
        """Of (one, other), both above zero; None without a pair."""
        ratios = [one / other for one, other in pairs if one > 0 and other > 0]
        if not ratios:
            return None
        return cls(statistics.median(ratios), min(ratios), max(ratios), len(ratios), _bound(ratios))

    def __str__(self) -> str:
        """For people: `0.95 (0.91-0.99, ≥ 0.92)`, the last with enough pairs only."""
        bound = "" if self.bound is None else f", ≥ {self.bound:.2f}"
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}{bound})"


def _bound(ratios: list[float]) -> float | None:
    """One-sided, by Student's t on the logarithms: ratios are multiplied, not added."""
    if len(ratios) < ENOUGH:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(statistics.fmean(logs) - student(len(logs) - 1) * error)


def student(freedom: int) -> float:
    """Student's t at 95 %, one-sided, by Cornish and Fisher's series: a thousandth off at 4 degrees, less above."""
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return Z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and between what the values lie, for people."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})"
