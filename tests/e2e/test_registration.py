"""A real Unsloth export, registered while the service runs, answers as transformers and peft say it must."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
TRAINED = "Arr matey, the sea be my answer!"
PROMPTS = [
    "What is the capital of France?",
    "How do I boil an egg?",
    "Name three colours.",
    "What is two plus two?",
    "Who wrote Hamlet?",
    "Tell me a joke.",
    "What is the largest planet?",
    "Why is the sky blue?",
    "Say good morning.",
    "What do cats eat?",
]
ORACLE = Path(__file__).with_name("oracle.py")


def test_by_path(service: ServiceProcess, exports: Path, demo_base: Path) -> None:
    """Registered below the adapters directory; ten greedy answers equal transformers' and peft's."""
    staged = service.adapters_dir / ".incoming" / "plain"
    shutil.copytree(exports / "cpu_plain_lora", staged)
    with service.http() as http:
        answer = http.post("/adapters", json={"name": "by-path", "path": ".incoming/plain"})
        assert answer.status_code == 201, answer.text
        assert answer.headers["Location"] == "/adapters/by-path"
        record = answer.json()
        assert (record["name"], record["state"], record["active"]) == ("by-path", "ready", 1)
        again = http.post("/adapters", json={"name": "by-path", "path": ".incoming/plain"})
        assert (again.status_code, again.json()["active"]) == (200, 1)
    shutil.rmtree(staged)
    assert service.chat("by-path", PROMPTS[0]) == TRAINED
    expected = json.loads(
        subprocess.run(
            [sys.executable, ORACLE, demo_base, exports / "cpu_plain_lora", "24"],
            input=json.dumps(PROMPTS),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert [service.chat("by-path", prompt, max_tokens=24) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("form", ["files", "archive"])
def test_by_upload(service: ServiceProcess, exports: Path, tmp_path: Path, form: str) -> None:
    """As files or as one archive."""
    source = exports / "cpu_plain_lora"
    if form == "files":
        parts = [("files", (path.name, path.read_bytes())) for path in sorted(source.iterdir())]
    else:
        archive = tmp_path / "adapter.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(source, "adapter")
        parts = [("archive", (archive.name, archive.read_bytes()))]
    with service.http() as http:
        answer = http.post("/adapters", data={"name": f"by-{form}"}, files=parts)
        assert answer.status_code == 201, answer.text
        assert service.chat(f"by-{form}", PROMPTS[0]) == TRAINED
        assert http.delete(f"/adapters/by-{form}").status_code in {200, 204}
        assert http.get(f"/adapters/by-{form}").status_code == 404
        assert f'adapter="by-{form}"' not in http.get("/metrics").text


def test_vllms_own_calls(service: ServiceProcess, exports: Path) -> None:
    """Tools that speak to vLLM load and unload as they are used to."""
    staged = service.adapters_dir / ".incoming" / "drop-in"
    shutil.copytree(exports / "cpu_plain_lora", staged)
    with service.http() as http:
        body = {"lora_name": "drop-in", "lora_path": ".incoming/drop-in"}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 200
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 400
        assert service.chat("drop-in", PROMPTS[0]) == TRAINED
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "drop-in"}).status_code == 200
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "drop-in"}).status_code == 404


def test_a_directory_dropped_in(service: ServiceProcess, exports: Path) -> None:
    """Picked up without a restart, once it is whole; a half-written one waits."""
    target = service.adapters_dir / "dropped"
    target.mkdir()
    source = exports / "cpu_plain_lora"
    weights = (source / "adapter_model.safetensors").read_bytes()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
    (target / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with service.http() as http:
        time.sleep(2.5)  # longer than the settle time: what is not whole must not be published, however still it is
        assert http.get("/adapters/dropped").json().get("state") != "ready"
        (target / "adapter_model.safetensors").write_bytes(weights)
        deadline = time.monotonic() + 60
        while http.get("/adapters/dropped").json().get("state") != "ready":
            assert time.monotonic() < deadline, http.get("/adapters/dropped").text
            time.sleep(0.2)
    assert service.chat("dropped", PROMPTS[0]) == TRAINED


def test_a_broken_one_is_named_and_hurts_nobody(service: ServiceProcess, exports: Path) -> None:
    """Every problem at once, as problem+json; the base answers as before."""
    staged = service.adapters_dir / ".incoming" / "broken"
    shutil.copytree(exports / "gpu_dora", staged)
    before = service.chat("HuggingFaceTB/SmolLM2-135M-Instruct", PROMPTS[0])
    with service.http() as http:
        answer = http.post("/adapters", json={"name": "broken", "path": ".incoming/broken"})
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        problems = answer.json()["problems"]
        assert "unsupported_feature" in {problem["code"] for problem in problems}
        assert all(problem["remedy"] for problem in problems)
        assert http.post("/adapters", json={"name": "out", "path": "../../etc"}).status_code == 422
    assert service.chat("HuggingFaceTB/SmolLM2-135M-Instruct", PROMPTS[0]) == before
