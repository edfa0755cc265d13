"""The tables of docs/validation.md are what the inspection answers today. `UPDATE_DOCS=1 pytest` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from adapter.defects import DEFECTS, MAX_RANK

from service.adapter.inspection import inspect
from service.adapter.spec import codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapter.defects import Defect

    from service.adapter.base import Base
    from service.adapter.spec import Report

DOCUMENT = Path(__file__).parents[2] / "docs" / "validation.md"


@pytest.mark.usefixtures("exports")
def test_defects(verdict: Callable[[Defect], Report]) -> None:
    """Of a real export; one made by code has other sizes, which some answers name."""
    rows = []
    for defect in DEFECTS:
        report = verdict(defect)
        first = report.problems[0]
        where = f"`{_cell(first.where)}`" if first.where else ""
        rows.append(f"| {defect.story} | {_codes(report)} | {where} | {_cell(first.message)} |")
    hold("defects", ["| what happened to it | answer | where | in words |", "| --- | --- | --- | --- |", *rows])


def test_exports(exports: Path, smol_base: Base) -> None:
    rows = []
    for directory in sorted(path for path in exports.iterdir() if path.is_dir()):
        report = inspect(directory, smol_base, max_rank=MAX_RANK)
        answer = "accepted" if report.accepted else _codes(report)
        warned = ", ".join(f"`{code}`" for code in dict.fromkeys(codes(report.warnings)))
        rows.append(f"| `{directory.name}` | {answer} | {warned} |")
    hold("exports", ["| export | answer | warnings |", "| --- | --- | --- |", *rows])


def hold(section: str, table: list[str]) -> None:
    """Compare a table with the committed one, or commit it."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- /{section} -->\n"
    before, _, rest = text.partition(begin)
    committed, _, after = rest.partition(end)
    written = "\n".join(table) + "\n"
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(before + begin + written + end + after)
    else:
        assert committed == written


def _codes(report: Report) -> str:
    return ", ".join(f"`{code}`" for code in dict.fromkeys(codes(report.problems)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
