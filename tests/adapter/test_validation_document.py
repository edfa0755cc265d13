"""The tables of docs/validation.md are what the inspection answers today."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from adapter.defects import DEFECTS, MAX_RANK
from document import hold

from service.adapter.inspection import inspect
from service.adapter.spec import codes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adapter.defects import Defect

    from service.adapter.base import Base
    from service.adapter.spec import Report


@pytest.mark.usefixtures("exports")
def test_defects(verdict: Callable[[Defect], Report]) -> None:
    """Of a real export; one made by code has other sizes, which some answers name."""
    rows = []
    for defect in DEFECTS:
        report = verdict(defect)
        first = report.problems[0]
        where = f"`{first.where}`" if first.where else ""
        rows.append([defect.story, _codes(report), where, first.message])
    hold("validation.md", "defects", ["what happened to it", "answer", "where", "in words"], rows)


def test_exports(exports: Path, smol_base: Base) -> None:
    rows = []
    for directory in sorted(path for path in exports.iterdir() if path.is_dir()):
        report = inspect(directory, smol_base, max_rank=MAX_RANK)
        answer = "accepted" if report.accepted else _codes(report)
        warned = ", ".join(f"`{code}`" for code in dict.fromkeys(codes(report.warnings)))
        rows.append([f"`{directory.name}`", answer, warned])
    hold("validation.md", "exports", ["export", "answer", "warnings"], rows)


def _codes(report: Report) -> str:
    return ", ".join(f"`{code}`" for code in dict.fromkeys(codes(report.problems)))
