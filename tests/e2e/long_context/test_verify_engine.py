"""`loradock convert --verify-engine`: vLLM itself starts on the result and says the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from service.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture
def dora(long_base: Path, tmp_path: Path) -> Path:
    """A DoRA adapter, which no engine keeps beside others."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], use_dora=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(long_base), config).save_pretrained(tmp_path / "dora")
    return tmp_path / "dora"


def test_the_engine_is_asked(dora: Path, long_base: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(dora), str(tmp_path / "out"), "--model", str(long_base), "--verify-engine", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verification"]["engine"].startswith("vllm")
    assert (tmp_path / "out" / "config.json").is_file()
