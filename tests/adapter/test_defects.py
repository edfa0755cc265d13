"""No spoiled adapter is accepted, and each is refused for its own reason and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from adapter.defects import DEFECTS, MAX_RANK, Defect, by_name

from service.adapter.inspection import inspect
from service.adapter.spec import codes

if TYPE_CHECKING:
    from pathlib import Path

    from service.adapter.base import Base


def test_healthy(healthy: Path, smol_base: Base) -> None:
    """What the defects are made from is sound, so that only the defect can be what is refused."""
    assert codes(inspect(healthy, smol_base, max_rank=MAX_RANK).problems) == []


def test_enough() -> None:
    assert len(by_name()) >= 60


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect(defect: Defect, healthy: Path, smol_base: Base, tmp_path: Path) -> None:
    directory = defect.make(healthy, tmp_path / "spoiled")
    report = inspect(directory, smol_base, max_rank=MAX_RANK)
    assert set(codes(report.problems)) == defect.expected
    assert all(problem.message and problem.remedy for problem in report.problems)
    assert not any(str(tmp_path) in text for problem in report.problems for text in problem.as_dict().values())
