"""The figures of a load test, as tables for people."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from rich.table import Column, Table
from rich.text import Text

from service.load.metric import METRICS, SCALES
from service.load.ratio import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from service.load.figures import Figures
    from service.load.metric import Metric
    from service.load.report import Account, Report

REASONS: Final = 5
"""Kinds of failures that are shown."""


def show_report(console: Console, report: Report) -> None:
    """A line for each figure: its median over the rounds, between what it lay, and how the servers compare."""
    ratios = {metric.name: ratio for metric, ratio in report.ratios()}
    heads = [Column("", no_wrap=True), *(Column(account.url, justify="right") for account in report.accounts)]
    table = Table(*heads, *([Column("ratio", justify="right")] if ratios else []), box=None)
    for title, count in (("requests", "requests"), ("failures", "failures")):
        sums = (sum(getattr(figures, count) for figures in account.rounds) for account in report.accounts)
        table.add_row(title, *map(str, sums))
    for metric in METRICS.values():
        cells = [_spread(metric, account) for account in report.accounts]
        if any(cells):
            ratio = ratios.get(metric.name)
            table.add_row(_title(metric), *cells, *([str(ratio) if ratio else ""] if ratios else []))
    console.print(table)
    for account in report.accounts:
        _show_failures(console, account)


def show_models(console: Console, report: Report) -> None:
    """A line for each model on each server; medians over the rounds."""
    wanted = [METRICS[name] for name in ("tokens_per_second", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "e2el_p50")]
    shown = [metric for metric in wanted if any(account.values(metric) for account in report.accounts)]
    heads = [Column(_title(metric), justify="right") for metric in shown]
    table = Table("model", "server", Column("requests", justify="right"), *heads, box=None)
    for model in report.contest.workload.models:
        for account in report.accounts:
            rounds = account.models[model]
            requests = sum(figures.requests for figures in rounds)
            table.add_row(model, account.url, str(requests), *(_median(metric, rounds) for metric in shown))
    console.print(table)


def _title(metric: Metric) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def _spread(metric: Metric, account: Account) -> str:
    values = [value * SCALES[metric.unit] for value in account.values(metric)]
    return spread(values, _digits(values)) if values else ""


def _median(metric: Metric, rounds: Sequence[Figures]) -> str:
    values = [value * SCALES[metric.unit] for figures in rounds if (value := metric.of(figures)) is not None]
    return f"{statistics.median(values):.{_digits(values)}f}" if values else ""


def _digits(values: Sequence[float]) -> int:
    """So many that about three digits count."""
    middle = statistics.median(values)
    return next((digits for digits, least in enumerate((100, 10)) if middle >= least), 2)


def _show_failures(console: Console, account: Account) -> None:
    most = sorted(account.failures.items(), key=lambda failure: -failure[1])
    for reason, count in most[:REASONS]:
        console.print(Text(f"{account.url}: {count} failed: {reason}", "red"))
    if len(most) > REASONS:
        console.print(Text(f"{account.url}: and {len(most) - REASONS} other reasons", "red"))
