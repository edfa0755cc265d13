"""`loradock convert`: what Unsloth left behind, as a complete, standard, verified model directory."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 (typer reads it)
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console
    from rich.progress import TaskID

    from service.export.refusal import Refused
    from service.export.report import Comparison, Conversion
    from service.export.request import Progress

CONVERTED, REFUSED, CANNOT_TELL = 0, 1, 2
TERMINATED = 143
"""Exit code after SIGTERM, as shells count it."""


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="An adapter, a trainer's output, or a merged model.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make; it must not exist yet.")],
    model: Annotated[
        str | None,
        typer.Option(help="The base model: a directory, or a hub id in the local cache; else what the adapter names."),
    ] = None,
    dtype: Annotated[Literal["bfloat16", "float16"], typer.Option(help="The type of the result.")] = "bfloat16",
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Don't prove the result: for models too large for this machine.")
    ] = False,
    verify_engine: Annotated[
        bool, typer.Option("--verify-engine", help="Start vLLM on the result too and compare its greedy tokens.")
    ] = False,
    rope_factor: Annotated[
        float | None,
        typer.Option(
            min=1, help="By how much positions were stretched in training (1: not at all); asked when unclear."
        ),
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Merge into the base although the adapter names another.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make a complete, standard, 16-bit Hugging Face model directory of what Unsloth saved, and prove that it is right.

    Nothing is uploaded or downloaded, and SRC stays as it is. Exits with 0 when OUT is there, whole and proven, 1 when
    the conversion was refused and 2 when it can't be told here; then there is no OUT.
    """
    import os

    from rich.console import Console

    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, which only the run itself does
    from service.export.convert import convert as run
    from service.export.refusal import Refused, Undecided
    from service.export.request import Request

    request = Request(
        source, out, model, dtype, not no_verify, verify_engine and not no_verify, allow_base_mismatch, rope_factor
    )
    console = Console(highlight=False)
    try:
        with _terminable(), _progress(quiet=json) as progress:
            conversion = run(request, progress)
    except Refused as error:
        _show_refusal(console, error, json=json)
        raise typer.Exit(REFUSED) from None
    except Undecided as error:
        _say_undecided(console, error.message, json=json)
        raise typer.Exit(CANNOT_TELL) from None
    if json:
        console.print_json(data=conversion.as_dict())
    else:
        _show(console, out, conversion)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that nothing half-made is left."""
    import signal

    def leave(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    """A line for each stage, with a bar where its length is known, on standard error."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(finished_text="✔"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        disable=quiet,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def finish() -> None:
            for task in bars.tasks:
                bars.update(task.id, total=task.total or 1, completed=task.total or 1)

        def tell(stage: str, done: int = 0, total: int = 0) -> None:
            if stage not in tasks:
                finish()
                tasks[stage] = bars.add_task(stage, total=total or None, amount="")
            bars.update(tasks[stage], completed=done, amount=f"{decimal(done)} of {decimal(total)}" if total else "")

        yield tell
        finish()


def _show(console: Console, out: Path, conversion: Conversion) -> None:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from service.cli.display import show_problems

    proven = "and proven" if conversion.verification else "and not verified"
    said = Text.assemble(("✔ ", "bold green"), (str(out), "bold"), f" is complete {proven}.")
    console.print(Panel(said, border_style="green", expand=False))
    facts = Table.grid(padding=(0, 2))
    for title, text in _facts(conversion):
        facts.add_row(Text(f"  {title}", "dim"), Text(text))
    console.print(facts)
    if conversion.notes:
        console.print()
        show_problems(console, [note.as_dict() for note in conversion.notes], "yellow")


def _facts(conversion: Conversion) -> Iterable[tuple[str, str]]:
    from rich.filesize import decimal

    yield "found", conversion.found
    if conversion.base:
        yield "base", conversion.base
    yield "weights", f"{conversion.tensors} tensors, {decimal(conversion.bytes)}, {conversion.dtype}"
    if conversion.supplied:
        yield "from the base", ", ".join(conversion.supplied)
    proof = conversion.verification
    if proof is None:
        return
    if proof.changed is not None:
        yield "changed", f"{proof.changed} tensors" + (f" of {proof.targets} targets" if proof.targets else "")
    yield from _comparison(proof.comparison)
    if proof.engine:
        yield "in the engine", f"{proof.engine} gives the same greedy tokens"


def _comparison(found: Comparison) -> Iterable[tuple[str, str]]:
    yield "held against", found.reference
    steps = f", by at most {found.steps} in the last place" if found.different else ""
    yield "weights differ", f"{found.different:,} of {found.elements:,}{steps}"
    yield "greedy tokens", f"{found.tokens_equal} of {found.tokens} equal, {found.prompts} prompts"
    yield "logits", f"differ by at most {found.logits:.3g}"
    if found.kept is not None:
        yield "effect kept", f"{found.kept:.1%} of what base + adapter does to the logits"


def _show_refusal(console: Console, error: Refused, *, json: bool) -> None:
    from service.cli.display import show_problems

    reasons = [reason.as_dict() for reason in error.reasons]
    if json:
        console.print_json(data={"converted": False, "reasons": reasons})
        return
    show_problems(console, reasons)


def _say_undecided(console: Console, message: str, *, json: bool) -> None:
    if json:
        console.print_json(data={"converted": None, "error": message})
    else:
        typer.echo(f"loradock: {message}", err=True)
