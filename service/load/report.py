"""What a contest came to: each side's figures, whole and by model, and how the sides compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from service import __version__
from service.load.figures import Figures
from service.load.metric import METRICS
from service.load.ratio import Ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.load.contest import Contest, Side
    from service.load.metric import Metric

FORMAT: Final = 1
"""Of the JSON; larger when something in it is renamed or goes."""


@dataclass(frozen=True)
class Account:
    """One side's figures, round by round."""

    url: str
    rounds: tuple[Figures, ...]
    models: dict[str, tuple[Figures, ...]]
    failures: dict[str, int]
    """Reason → how often."""

    def values(self, metric: Metric) -> list[float]:
        """One number of every round in which it was measured."""
        return [value for figures in self.rounds if (value := metric.of(figures)) is not None]


@dataclass(frozen=True)
class Report:
    """Everything that is shown, written and drawn."""

    contest: Contest
    accounts: tuple[Account, ...]

    @classmethod
    def of(cls, contest: Contest) -> Report:
        """Of what has been measured so far."""
        return cls(contest, tuple(_account(side, contest.workload.models) for side in contest.sides))

    @property
    def failures(self) -> int:
        """Requests without a sound answer."""
        return sum(sum(account.failures.values()) for account in self.accounts)

    def ratios(self) -> Iterator[tuple[Metric, Ratio]]:
        """The first side by the second, where there are two and both have been measured."""
        if len(self.accounts) == 1:
            return
        ours, theirs = self.accounts
        for metric in METRICS.values():
            pairs = [(metric.of(one), metric.of(other)) for one, other in zip(ours.rounds, theirs.rounds, strict=True)]
            if ratio := Ratio.of(pairs):
                yield metric, ratio

    def as_dict(self) -> dict[str, Any]:
        """For machines; latencies in seconds."""
        return {
            "format": FORMAT,
            "loradock": __version__,
            "seed": self.contest.seed,
            "workload": asdict(self.contest.workload),
            "servers": [asdict(account) for account in self.accounts],
            "ratios": {metric.name: asdict(ratio) for metric, ratio in self.ratios()},
        }


def _account(side: Side, models: tuple[str, ...]) -> Account:
    by_model = {
        model: tuple(
            Figures.among((answer for answer in run.answers if answer.model == model), run.seconds) for run in side.runs
        )
        for model in models
    }
    failures = Counter(answer.failure for run in side.runs for answer in run.answers if answer.failure)
    return Account(side.server.url, tuple(Figures.of(run) for run in side.runs), by_model, dict(failures))
