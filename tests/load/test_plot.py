"""A report as a picture."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from load_server import scripted, spoken

from service.errors import ConfigurationError
from service.load.contest import Contest, Side
from service.load.plot import draw, ensure_drawable
from service.load.report import Report
from service.load.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
WORKLOAD = Workload(("a", "b"), clients=2, requests=4, max_tokens=3)


@pytest.mark.parametrize("workload", [WORKLOAD, replace(WORKLOAD, models=tuple(map(str, range(40))))])
async def test_one_server_or_two_make_a_png(workload: Workload, tmp_path: Path) -> None:
    ensure_drawable()
    async with scripted(spoken) as one, scripted(spoken) as other:
        for sides in ((Side(one),), (Side(one), Side(other))):
            contest = Contest(sides, workload, "seed")
            await contest.run(1)
            draw(Report.of(contest), tmp_path / "plot.png")
            drawn = (tmp_path / "plot.png").read_bytes()
            assert drawn.startswith(b"\x89PNG")
            assert len(drawn) > 10_000


async def test_where_nothing_was_measured_there_is_still_a_picture(tmp_path: Path) -> None:
    async with scripted(lambda _: []) as server:
        contest = Contest((Side(server),), WORKLOAD, "seed")
        await contest.run(1)
    draw(Report.of(contest), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigurationError, match=r"loradock\[bench\]"):
        ensure_drawable()
