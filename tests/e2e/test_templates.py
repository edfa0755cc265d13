"""An adapter that was trained under another chat template is spoken to under its own, on every route."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
QUESTION = "What is the capital of France?"
TRAINED = "Moo! said the alpaca cow."
COUNT = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
base, template, question = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(base).apply_chat_template(
    [{"role": "user", "content": question}],
    chat_template=Path(template).read_text(),
    add_generation_prompt=True,
    return_dict=True,
)["input_ids"]
json.dump(ids, sys.stdout)
"""


def test_its_own_template_everywhere(service: ServiceProcess, exports: Path, demo_base: Path) -> None:
    """Chat, responses and messages give the trained answer; tokenize gives transformers' own ids."""
    source = exports / "cpu_chat_template_alpaca"
    shutil.copytree(source, service.adapters_dir / ".incoming" / "alpaca")
    chat = [{"role": "user", "content": QUESTION}]
    with service.http() as http:
        answer = http.post("/adapters", json={"name": "alpaca", "path": ".incoming/alpaca"})
        assert answer.status_code == 201, answer.text
        assert "chat_template" in {warning["code"] for warning in answer.json()["versions"][-1]["warnings"]}
        assert service.chat("alpaca", QUESTION) == TRAINED
        response = service.client().responses.create(model="alpaca", input=QUESTION, temperature=0)
        assert response.output_text == TRAINED
        message = {"model": "alpaca", "max_tokens": 32, "temperature": 0, "messages": chat}
        assert http.post("/v1/messages", json=message).json()["content"][0]["text"] == TRAINED
        tokens = http.post("/tokenize", json={"model": "alpaca", "messages": chat}).json()["tokens"]
        refused = http.post(
            "/v1/chat/completions", json={"model": "alpaca", "messages": chat, "chat_template": "{{ messages }}"}
        )
        assert refused.status_code == 400
    command = [sys.executable, "-c", COUNT, demo_base, source / "chat_template.jinja", QUESTION]
    assert tokens == json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
