"""The composition root: the command `loradock` and everything it builds."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command."""
    from service.cli.app import run

    run()
