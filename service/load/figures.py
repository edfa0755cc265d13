"""A run in numbers. Latencies are of the answers that succeeded, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.load.answer import Answer
    from service.load.drive import Run


@dataclass(frozen=True, slots=True)
class Quantiles:
    """How something is spread over all requests or tokens."""

    p50: float
    p90: float
    p99: float
    mean: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None where there is nothing to measure."""
        if not values:
            return None
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(p50, p90, p99, float(np.mean(values)), float(max(values)))


@dataclass(frozen=True, slots=True)
class Figures:
    """Named as vLLM's and others' load tests name them."""

    requests: int
    failures: int
    tokens: int
    prompt_tokens: int
    seconds: float
    tokens_per_second: float
    requests_per_second: float
    ttft: Quantiles | None
    """Time to the first token."""
    itl: Quantiles | None
    """Gaps between two arrivals in a stream, all streams together."""
    tpot: Quantiles | None
    """Each answer's time from the first token to the last, shared among those after the first."""
    e2el: Quantiles | None
    """End to end: from the request to the end of the answer."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """All answers of a run."""
        return cls.among(run.answers, run.seconds)

    @classmethod
    def among(cls, answers: Iterable[Answer], seconds: float) -> Self:
        """Some answers, of a run that took `seconds`."""
        answers = list(answers)
        sound = [answer for answer in answers if not answer.failure]
        tokens = sum(answer.tokens for answer in sound)
        return cls(
            requests=len(answers),
            failures=len(answers) - len(sound),
            tokens=tokens,
            prompt_tokens=sum(answer.prompt_tokens for answer in sound),
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            requests_per_second=len(sound) / seconds if seconds else 0.0,
            ttft=Quantiles.of(_known(answer.first_token for answer in sound)),
            itl=Quantiles.of([gap for answer in sound for gap in answer.gaps]),
            tpot=Quantiles.of(_known(answer.each_token for answer in sound)),
            e2el=Quantiles.of([answer.ended - answer.began for answer in sound]),
        )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
