"""The command line of `loradock`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

import typer

from service.cli.bench import bench
from service.cli.check import check
from service.cli.convert import convert
from service.cli.demo_model import demo_model
from service.cli.doctor import doctor
from service.cli.remote import list_, pin, publish, remove, rollback, show, unpin

COMMANDS = (check, convert, publish, list_, show, rollback, remove, pin, unpin, doctor, bench, demo_model)

app = typer.Typer(
    name="loradock",
    help="Serve many LoRA adapters beside one base model: proven, versioned and hot-swapped in front of vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve a base model and its adapters over HTTP (`loradock serve --help` lists every setting)."""
    from service.cli.serve import main

    main(context.args)


for command in COMMANDS:
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)


def run() -> None:
    """Run the command line; an error of ours is one sentence and exit code 2."""
    from service.errors import ConfigurationError

    try:
        app()
    except ConfigurationError as error:
        typer.echo(f"loradock: {error}", err=True)
        sys.exit(2)
