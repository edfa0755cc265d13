"""`loradock bench`: a load test of any OpenAI-compatible server, or of two in turns."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 (typer reads it)
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.load.contest import Contest, Side
    from service.load.report import Report
    from service.load.server import Server

ANSWERED, FAILED, INTERRUPTED = 0, 1, 130


def bench(
    url: Annotated[str, typer.Option(help="The server, with or without /v1.", envvar="LORADOCK_URL")],
    against: Annotated[str | None, typer.Option(help="Another one, measured in turns with the first.")] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Names or patterns to ask, repeatable; else all that are listed.")
    ] = None,
    mix: Annotated[
        Literal["even", "uniform", "zipf"],
        typer.Option(help="How requests are shared out: in turn, at random, or the n-th model 1/n as often."),
    ] = "even",
    clients: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests a round; else four for each client.")] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds after which a round begins no more requests.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in each of which every server has one turn.")] = 3,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Words of a prompt, mostly one token each.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    stream: Annotated[bool, typer.Option(help="Let answers be streamed.")] = True,
    chat: Annotated[bool, typer.Option("--chat", help="Ask chats instead of completions.")] = False,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for answers of full length, as vLLM's and SGLang's servers understand it.")
    ] = True,
    seed: Annotated[str | None, typer.Option(help="Makes prompts and mix the same again; else new ones.")] = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Where all figures go as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Where a picture goes as PNG.")] = None,
) -> None:
    """Put an OpenAI-compatible server under load, or two side by side, and tell how fast they answer.

    Exits with 0 when every request was answered, 1 when some failed, 2 when a server can't be asked.
    """
    from secrets import token_hex

    from service.load.contest import Contest, Side
    from service.load.plot import draw, ensure_drawable
    from service.load.report import Report
    from service.load.server import Server
    from service.load.workload import Workload

    for path in (json, plot):
        if path and not path.parent.is_dir():
            raise typer.BadParameter(f"There is no directory {path.parent}.")
    if plot:
        ensure_drawable()
    servers = [Server.at(address) for address in (url, against) if address]
    contest = Contest(
        tuple(Side(server) for server in servers),
        Workload(
            _chosen(servers, models or ["*"]),
            clients=clients,
            requests=requests or (None if duration else 4 * clients),
            seconds=duration,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            mix=mix,
            stream=stream,
            ignore_eos=ignore_eos,
            chat=chat,
        ),
        seed or token_hex(4),
    )
    whole = _run(contest, rounds)
    report = Report.of(contest)
    _show(report)
    if json:
        _write(report, json)
    if plot:
        draw(report, plot)
    if not whole:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FAILED if report.failures else ANSWERED)


def _chosen(servers: Sequence[Server], patterns: Sequence[str]) -> tuple[str, ...]:
    """The models that every server has and a pattern names. Raises ConfigurationError when there is none."""
    from fnmatch import fnmatchcase

    from service.errors import ConfigurationError

    listed = [server.models() for server in servers]
    wanted = [name for name in listed[0] if any(fnmatchcase(name, pattern) for pattern in patterns)]
    common = tuple(name for name in wanted if all(name in names for names in listed))
    if not common:
        have = "; ".join(f"{server.url} has {', '.join(names)}" for server, names in zip(servers, listed, strict=True))
        raise ConfigurationError(f"There is no model to ask for: {have}.")
    if left_out := set(wanted) - set(common):
        typer.echo(f"Only one server has {', '.join(sorted(left_out))}: not asked.", err=True)
    return common


def _run(contest: Contest, rounds: int) -> bool:
    """Measure; whether all rounds were. Ctrl-C ends it with the rounds that are whole."""
    import asyncio

    async def run() -> None:
        with _progress(contest, rounds) as (begun, answered):
            await contest.warm_up()
            await contest.run(rounds, begun=begun, answered=answered)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        done = len(contest.sides[0].runs)
        typer.echo(f"Stopped after {done} of {rounds} rounds.", err=True)
        if not done:
            raise typer.Exit(INTERRUPTED) from None
        return False
    return True


@contextmanager
def _progress(contest: Contest, rounds: int) -> Iterator[tuple[Callable[[int, Side], None], Callable[[], None]]]:
    """A bar of all requests on standard error; a pulse where their number isn't known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    requests = contest.workload.requests
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=requests and requests * rounds * len(contest.sides))

        def begun(number: int, side: Side) -> None:
            bar.update(task, description=f"round {number + 1} of {rounds}, {side.server.url}")

        yield begun, lambda: bar.advance(task)


def _show(report: Report) -> None:
    from rich.console import Console

    from service.cli.figures import show_models, show_report

    console = Console(highlight=False)
    show_report(console, report)
    if len(report.contest.workload.models) > 1:
        console.print()
        show_models(console, report)


def _write(report: Report, target: Path) -> None:
    from json import dumps

    target.write_text(dumps(report.as_dict(), indent=2) + "\n")
