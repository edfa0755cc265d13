"""`loradock demo-model`: the embedded demo base, put where a service or a test can use it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads it)
from typing import Annotated

import typer


def demo_model(out: Annotated[Path, typer.Argument(help="The directory to write.")]) -> None:
    """Write the embedded demo base model, SmolLM2-135M-Instruct (269 MB), to OUT. Nothing is done if it is there."""
    from rich.progress import Progress

    from service.export.demo_model import write_demo_model

    with Progress() as bar:
        task = bar.add_task("", total=1.0)
        write_demo_model(out, lambda doing, part: bar.update(task, description=doing, completed=part))
