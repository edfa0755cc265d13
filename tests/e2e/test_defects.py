"""Every spoiled adapter we know, sent at the running service: none is served, all are named, nobody else notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from adapter.defects import DEFECTS

if TYPE_CHECKING:
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
RANK_LIMIT_OF_THE_ENGINE = {"rank_too_large"}
"""The engine of this session takes larger ranks than the table of defects was made for."""


def test_none_is_served(service: ServiceProcess, exports: Path, voices: dict[str, str]) -> None:
    """Registered one after the other, with requests in between, to fresh prompts too."""
    models = (BASE, *voices)
    question = "What is the capital of France?"
    before = {model: service.chat(model, question) for model in models}
    incoming = service.adapters_dir / ".incoming"
    served, misnamed = [], []
    with service.http() as http:
        for number, defect in enumerate(DEFECTS):
            if defect.expected & RANK_LIMIT_OF_THE_ENGINE:
                continue
            defect.make(exports / "cpu_plain_lora", incoming / defect.name)
            answer = http.post("/adapters", json={"name": "spoiled", "path": f".incoming/{defect.name}"})
            if answer.status_code not in {413, 422}:
                served.append((defect.name, answer.status_code))
            elif {problem["code"] for problem in answer.json()["problems"]} != defect.expected:
                misnamed.append((defect.name, answer.json()["problems"]))
            if number % 20 == 0:
                assert {model: service.chat(model, question) for model in models} == before
                assert "spoiled" not in {model.id for model in service.client().models.list()}
    assert not served
    assert not misnamed
    assert {model: service.chat(model, question) for model in models} == before
    assert "Rome" in service.chat(BASE, "What is the capital of Italy?")
