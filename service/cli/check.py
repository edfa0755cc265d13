"""`loradock check`: the judgement of an adapter directory, offline and without an engine."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads it)
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from service.adapter.base import Base
    from service.adapter.spec import Report

ACCEPTED, REJECTED, CANNOT_TELL = 0, 1, 2


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter's directory.")],
    model: Annotated[str, typer.Option(help="The base model: a directory, or a hub id already in the local cache.")],
    base_model_name: Annotated[
        str | None, typer.Option(help="What the base is called by adapters; else read from its config.json.")
    ] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank the service takes; not judged if not given.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="The type it would be served in.")
    ] = "auto",
    allow_base_mismatch: Annotated[bool, typer.Option(help="Accept an adapter that names another base model.")] = False,
    headers_only: Annotated[
        bool, typer.Option(help="Don't read the weights themselves: faster, and says less.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whether an Unsloth or PEFT adapter can be served, and if not, everything that is wrong with it.

    Exits with 0 when it is accepted, 1 when it is rejected and 2 when that can't be told.
    """
    import os
    import time

    from rich.console import Console

    from service.adapter.base import Base
    from service.adapter.inspection import inspect
    from service.errors import ConfigurationError

    if not os.access(directory, os.R_OK | os.X_OK) or not directory.is_dir():
        raise _cannot_tell(f"There is no readable directory {directory}.", json=json)
    try:
        base = Base.open(model, base_model_name)
    except ConfigurationError as error:
        raise _cannot_tell(error.message, json=json) from None
    served = base.serving_dtype if dtype == "auto" else dtype
    began = time.perf_counter()
    report = inspect(
        directory,
        base,
        max_rank=max_lora_rank,
        dtype=served,
        allow_base_mismatch=allow_base_mismatch,
        numbers=not headers_only,
    )
    seconds = time.perf_counter() - began
    console = Console(highlight=False)
    if json:
        console.print_json(data=report.as_dict())
    else:
        _show(console, directory.resolve().name, report, base, served, seconds)
    raise typer.Exit(ACCEPTED if report.accepted else REJECTED)


def _cannot_tell(message: str, *, json: bool) -> typer.Exit:
    if json:
        from json import dumps

        typer.echo(dumps({"accepted": None, "error": message}))
    else:
        typer.echo(f"loradock: {message}", err=True)
    return typer.Exit(CANNOT_TELL)


def _show(console: Console, name: str, report: Report, base: Base, dtype: str, seconds: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from service.cli.display import show_problems

    console.print(_verdict(name, report, base))
    facts = Table.grid(padding=(0, 2))
    for title, text in _facts(report, dtype, seconds):
        facts.add_row(Text(f"  {title}", "dim"), Text(text))
    console.print(facts)
    for problems, style in ((report.problems, "red"), (report.warnings, "yellow")):
        if problems:
            console.print()
            show_problems(console, [problem.as_dict() for problem in problems], style)


def _verdict(name: str, report: Report, base: Base) -> object:
    from rich.panel import Panel
    from rich.text import Text

    count = len(report.problems)
    if report.accepted:
        said, style = f" can be served on {base.name}.", "green"
    else:
        said, style = f" is not served on {base.name}: {count} problem{'s' if count > 1 else ''}.", "red"
    mark = "✔ " if report.accepted else "✘ "
    return Panel(Text.assemble((mark, f"bold {style}"), (name, "bold"), said), border_style=style, expand=False)


def _facts(report: Report, dtype: str, seconds: float) -> Iterable[tuple[str, str]]:
    from rich.filesize import decimal

    from service.adapter.weights import STRENGTH_LIMIT

    yield "trained on", report.base or "not said"
    if report.modules:
        yield "modules", f"{len(report.modules)}: {_leaves(report.modules)}"
        ranks = sorted(set(report.modules.values()))
        yield "rank", ", ".join(map(str, ranks[:10])) + (" …" if len(ranks) > 10 else "")  # noqa: PLR2004 (a line)
    if report.bytes:
        yield "weights", f"{decimal(report.bytes)}, {report.dtype or 'of no known type'}, served as {dtype}"
    if report.strength is not None:
        size = f"{report.strength:.3g} times the weight it changes"
        yield "strength", f"at most {size} ({report.strongest}); more than {STRENGTH_LIMIT:g} is refused"
    if report.own_template or report.own_tokenizer:
        own = [word for word, has in (("template", report.own_template), ("tokenizer", report.own_tokenizer)) if has]
        yield "its own", " and ".join(own)
    if report.stop_token_ids:
        yield "stops at", ", ".join(map(str, report.stop_token_ids))
    yield "judged in", f"{seconds * 1000:.0f} ms"


def _leaves(modules: Iterable[str]) -> str:
    from collections import Counter

    counts = Counter(module.rsplit(".", 1)[-1] for module in modules)
    return ", ".join(f"{count} {leaf}" for leaf, count in counts.most_common(10))
