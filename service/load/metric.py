"""What is told of every round: a name for JSON, a title for people, and where it is in the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.load.figures import Figures, Quantiles

RATES: Final = {"tokens_per_second": "tokens/s", "requests_per_second": "requests/s"}
LATENCIES: Final = {
    "ttft": ("time to first token", "ms"),
    "itl": ("gap between tokens", "ms"),
    "tpot": ("time per token", "ms"),
    "e2el": ("end to end", "s"),
}
LEVELS: Final = ("p50", "p90", "p99")
SCALES: Final = {"": 1.0, "s": 1.0, "ms": 1000.0}


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a round."""

    title: str
    unit: str
    part: str
    level: str | None = None
    """Which of a latency's quantiles."""

    @property
    def name(self) -> str:
        """Its key in JSON."""
        return f"{self.part}_{self.level}" if self.level else self.part

    def of(self, figures: Figures) -> float | None:
        """Its value, latencies in seconds; None where there was nothing to measure."""
        if self.level is None:
            return float(getattr(figures, self.part))
        quantiles: Quantiles | None = getattr(figures, self.part)
        return None if quantiles is None else float(getattr(quantiles, self.level))


def _all() -> Iterator[Metric]:
    for part, title in RATES.items():
        yield Metric(title, "", part)
    for part, (title, unit) in LATENCIES.items():
        for level in LEVELS:
            yield Metric(f"{title}, {level}", unit, part, level)


METRICS: Final = {metric.name: metric for metric in _all()}
