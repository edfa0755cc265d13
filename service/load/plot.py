"""A report as a picture. matplotlib is imported only where one is asked for; it is the extra `bench`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

import numpy as np

from service.errors import ConfigurationError
from service.load.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from service.load.contest import Side
    from service.load.figures import Figures
    from service.load.metric import Metric
    from service.load.report import Report

SHOWN: Final = 24
"""Models that fit into one picture."""
GREY, DOTS = 0.85, 140


def ensure_drawable() -> None:
    """Raise ConfigurationError when nothing could be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("A plot needs matplotlib, which isn't installed: install loradock[bench].")


def draw(report: Report, target: Path) -> None:
    """Tokens a second, the spread of both latencies, and every model's waits, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    throughput, first_token, gaps, models = figure.subplots(2, 2).flat
    _throughput(throughput, report)
    sides = report.contest.sides
    _spread(first_token, sides, [_first_tokens(side) for side in sides], "time to first token, s")
    _spread(gaps, sides, [_gaps(side) for side in sides], "gap between tokens, s")
    _models(models, report)
    workload = report.contest.workload
    figure.suptitle(
        f"{workload.clients} clients, {len(workload.models)} models, {workload.max_tokens} tokens an answer"
    )
    figure.savefig(target, format="png", dpi=DOTS)


def _throughput(axes: Axes, report: Report) -> None:
    from matplotlib.ticker import MaxNLocator

    for account in report.accounts:
        values = account.values(METRICS["tokens_per_second"])
        axes.plot(range(1, len(values) + 1), values, marker="o", label=account.url)
    axes.set(title="tokens a second", xlabel="round", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=str(GREY))
    axes.legend()


def _spread(axes: Axes, sides: Sequence[Side], values: Sequence[Sequence[float]], title: str) -> None:
    """Each side's share of requests or gaps below a latency."""
    for side, known in zip(sides, values, strict=True):
        if known:
            axes.ecdf(known, label=side.server.url)
    axes.set(title=title, ylabel="share at most that")
    if any(values):
        axes.set_xscale("log")
        axes.legend()
    axes.grid(color=str(GREY))


def _models(axes: Axes, report: Report) -> None:
    """How long each model's clients wait: for the first token, or where nothing was streamed for the whole answer."""
    asked = report.contest.workload
    metric, names = METRICS["ttft_p50" if asked.stream else "e2el_p50"], asked.models[:SHOWN]
    width = 0.8 / len(report.accounts)
    for place, account in enumerate(report.accounts):
        heights = [_mean(metric, account.models[name]) for name in names]
        axes.bar(np.arange(len(names)) + place * width, heights, width, label=account.url)
    axes.set(title=f"{metric.title}, s" + (f", the first {SHOWN} models" if len(asked.models) > SHOWN else ""))
    axes.set_xticks(np.arange(len(names)) + width * (len(report.accounts) - 1) / 2, names, rotation=60, ha="right")
    axes.grid(color=str(GREY), axis="y")
    axes.set_axisbelow(True)


def _mean(metric: Metric, rounds: Sequence[Figures]) -> float:
    known = [value for figures in rounds if (value := metric.of(figures)) is not None]
    return float(np.mean(known)) if known else 0.0


def _first_tokens(side: Side) -> list[float]:
    return [wait for run in side.runs for answer in run.answers if (wait := answer.first_token) is not None]


def _gaps(side: Side) -> list[float]:
    """Those that a logarithmic axis can show."""
    return [gap for run in side.runs for answer in run.answers for gap in answer.gaps if gap > 0]
