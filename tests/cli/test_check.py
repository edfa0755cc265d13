from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import typer
from tiny_model import write_adapter
from typer.testing import CliRunner

from service.cli.check import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from service.adapter.base import Base


@pytest.fixture
def run(tiny_base: Base) -> Callable[..., Result]:
    """`loradock check` against the tiny base."""
    app = typer.Typer()
    app.command()(check)
    model = ["--model", str(tiny_base.path)]
    return lambda directory, *more: CliRunner().invoke(app, [str(directory), *model, *more])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "pirate")


def test_accepted(run: Callable[..., Result], adapter: Path) -> None:
    result = run(adapter)
    assert result.exit_code == 0
    assert "pirate can be served on example/tiny-base" in result.output
    assert "1 q_proj, 1 v_proj" in result.output


def test_rejected(run: Callable[..., Result], adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    result = run(adapter)
    assert result.exit_code == 1
    assert "weights_missing" in result.output
    assert "1 problem." in result.output


def test_json_is_the_report(run: Callable[..., Result], adapter: Path) -> None:
    result = run(adapter, "--json", "--max-lora-rank", "2")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["accepted"] is False
    assert [problem["code"] for problem in report["problems"]] == ["rank_too_large"]
    assert set(report["problems"][0]) == {"code", "message", "where", "remedy"}
    assert report["rank"] == 4


def test_options_reach_the_judgement(run: Callable[..., Result], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", base_model_name_or_path="example/other", lora_alpha=1e9)
    assert run(other).exit_code == 1
    assert run(other, "--allow-base-mismatch").exit_code == 1
    assert run(other, "--allow-base-mismatch", "--headers-only").exit_code == 0
    assert run(other, "--base-model-name", "example/other", "--headers-only").exit_code == 0
    assert "float16" in run(other, "--dtype", "float16").output


@pytest.mark.parametrize("as_json", [True, False])
def test_it_can_not_be_told(run: Callable[..., Result], adapter: Path, as_json: bool) -> None:
    more = ["--json"] if as_json else []
    for result in (run(adapter / "nothing", *more), run(adapter, "--model", str(adapter), *more)):
        assert result.exit_code == 2
        if as_json:
            assert json.loads(result.output)["accepted"] is None
        else:
            assert "loradock: " in result.output
