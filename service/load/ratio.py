"""Two things measured in turns: how they compare, and how sure that is."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENOUGH: Final = 5
"""Pairs from which on bounds are given."""
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """One by the other, pair by pair. A pair is measured within minutes, so what slows the machine cancels."""

    median: float
    low: float
    high: float
    pairs: int
    at_least: float | None
    """With 95 % confidence the true ratio isn't below this; None with too few pairs."""
    at_most: float | None
    """With 95 % confidence it isn't above this."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[float | None, float | None]]) -> Self | None:
        """Of (one, other); None without a pair that was measured on both sides."""
        ratios = [one / other for one, other in pairs if one and other]
        if not ratios:
            return None
        at_least, at_most = _bounds(ratios)
        return cls(statistics.median(ratios), min(ratios), max(ratios), len(ratios), at_least, at_most)

    def __str__(self) -> str:
        """For people: `0.95 (0.91-0.99)`, or where there are bounds `0.95 (0.91-0.99, 95 %: ≥ 0.92, ≤ 0.98)`."""
        if self.pairs == 1:
            return f"{self.median:.2f}"
        bounds = "" if self.at_least is None else f", 95 %: ≥ {self.at_least:.2f}, ≤ {self.at_most:.2f}"
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}{bounds})"


def _bounds(ratios: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Each one-sided, by Student's t on the logarithms: ratios are multiplied, not added."""
    if len(ratios) < ENOUGH:
        return None, None
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    slack = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean - slack), math.exp(mean + slack)


def student(freedom: int) -> float:
    """Student's t at 95 %, one-sided, by Cornish and Fisher's series: a thousandth off at 4 degrees, less above."""
    z = statistics.NormalDist().inv_cdf(CONFIDENCE)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / freedom + second / freedom**2 + third / freedom**3)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and between what several values lie, for people."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle
