"""Commands that speak to a running service: publish, list, show, rollback, remove, pin, unpin.

They end with 0 when it was done, 1 when the service refused, 2 when it could not be asked. With `--json` the
service's own answer, or its problem, goes to standard output.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 (typer reads the annotations when it runs)
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.cli.client import Client, ServiceError

REFUSED: Final = 1
NOT_ASKED: Final = 2
DEFAULT_URL: Final = "http://127.0.0.1:8000"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.", show_default=False)]
Url = Annotated[str, typer.Option(help="Where the service listens.", envvar="LORADOCK_URL")]
Json = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]


def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What save_pretrained wrote.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The name to serve it under; else the directory's.")] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Accept it though it names another base model.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Upload an adapter; done when it is proven and active."""
    fields = {"name": name or directory.resolve().name, "allow_base_mismatch": str(allow_base_mismatch).lower()}
    with _service(url, as_json=as_json) as service, _progress(quiet=as_json) as (began, sent):
        record = service.upload(fields, _content_files(directory), began, sent)
    _tell(record, f"{record['name']}@{record['active']} is active.", as_json=as_json)


def list_(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List every adapter."""
    with _service(url, as_json=as_json) as service:
        answer = service.call("GET", "/adapters")
    if as_json:
        _print_json(answer)
        return
    from rich.console import Console

    from service.cli.display import show_adapters

    show_adapters(Console(), answer["adapters"])


def show(name: Name, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show one adapter, its versions and its problems."""
    with _service(url, as_json=as_json) as service:
        record = service.call("GET", _path(name))
    if as_json:
        _print_json(record)
        return
    from rich.console import Console

    from service.cli.display import show_adapter

    show_adapter(Console(), record)


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(min=1, help="The version; else the one that was active before.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Make an earlier version active again."""
    with _service(url, as_json=as_json) as service:
        record = service.call("POST", f"{_path(name)}/rollback", {"version": to})
    _tell(record, f"{name}@{record['active']} is active.", as_json=as_json)


def remove(name: Name, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Stop serving an adapter and delete it, once its last request has ended."""
    with _service(url, as_json=as_json) as service:
        service.call("DELETE", _path(name))
    _tell({}, f"{name} is removed.", as_json=as_json)


def pin(name: Name, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Keep an adapter in the engine's memory."""
    with _service(url, as_json=as_json) as service:
        record = service.call("PUT", f"{_path(name)}/pin")
    _tell(record, f"{name} is pinned.", as_json=as_json)


def unpin(name: Name, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Let an adapter be evicted like any other."""
    with _service(url, as_json=as_json) as service:
        record = service.call("DELETE", f"{_path(name)}/pin")
    _tell(record, f"{name} is no longer pinned.", as_json=as_json)


def _path(name: str) -> str:
    return f"/adapters/{quote(name, safe='')}"


@contextmanager
def _service(url: str, *, as_json: bool) -> Iterator[Client]:
    """The service, and the end of the command where it refuses or isn't there."""
    from service.cli.client import Client, ServiceError

    try:
        with Client(url) as service:
            yield service
    except ServiceError as error:
        _tell_failure(error, as_json=as_json)
        raise typer.Exit(REFUSED if error.refused else NOT_ASKED) from None


def _content_files(directory: Path) -> list[Path]:
    """What of a directory belongs to the adapter. Ends the command where there is nothing to send."""
    from service.adapter.layout import CONTENT_FILES

    files = [path for name in CONTENT_FILES if (path := directory / name).is_file()]
    if not files:
        raise typer.BadParameter(f"{directory} holds no adapter: {', '.join(CONTENT_FILES[:2])} are missing.")
    return files


@contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on standard error while an upload goes out, and a pulse while the service proves it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        upload = bar.add_task("uploading", total=None)

        def sent(more: int) -> None:
            bar.advance(upload, more)
            if bar.finished:
                bar.add_task("proving", total=None)

        yield lambda total: bar.update(upload, total=total), sent


def _tell(record: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Say that it was done, and what deserves a word about it."""
    if as_json:
        _print_json(record)
        return
    from rich.console import Console

    from service.cli.display import show_problems

    typer.echo(sentence)
    show_problems(Console(), record.get("warnings", ()), "yellow")


def _tell_failure(error: ServiceError, *, as_json: bool) -> None:
    if as_json:
        _print_json(error.details)
        return
    from rich.console import Console

    from service.cli.display import show_problems

    typer.secho(str(error), fg="red", err=True)
    show_problems(Console(stderr=True), error.details.get("problems", ()))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
