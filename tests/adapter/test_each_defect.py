"""No spoiled adapter is accepted, and each is refused for its own reason and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from adapter.defects import DEFECTS, MAX_RANK, Defect, by_name

from service.adapter.inspection import inspect
from service.adapter.spec import codes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.spec import Report


def test_healthy(healthy: Path, smol_base: Base) -> None:
    """What the defects are made from is sound, so that only the defect can be what is refused."""
    assert codes(inspect(healthy, smol_base, max_rank=MAX_RANK).problems) == []


def test_enough() -> None:
    assert len(by_name()) >= 60


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect(defect: Defect, verdict: Callable[[Defect], Report], tmp_path_factory: pytest.TempPathFactory) -> None:
    report = verdict(defect)
    assert set(codes(report.problems)) == defect.expected
    assert all(problem.message and problem.remedy for problem in report.problems)
    said = [text for problem in (*report.problems, *report.warnings) for text in problem.as_dict().values()]
    assert not any(str(tmp_path_factory.getbasetemp()) in text for text in said), "a path of the serving machine"
