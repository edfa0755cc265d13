"""What outlives the process."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import numpy as np
import openai
import psutil
import pytest
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FRANCE = "What is the capital of France?"


def engine_processes(service: ServiceProcess) -> list[psutil.Process]:
    assert service.process is not None
    return psutil.Process(service.process.pid).children(recursive=True)


def register(service: ServiceProcess, source: Path, path: str, name: str) -> None:
    shutil.copytree(source, service.adapters_dir / path)
    with service.http() as http:
        answer = http.post("/adapters", json={"name": name, "path": path})
        assert answer.status_code in {200, 201}, answer.text


def spoil_on_disk(service: ServiceProcess, name: str) -> None:
    """Make every number of a stored version NaN, as a dying disk might: after the proof, behind the service's back."""
    (weights,) = (service.state_dir / "adapters" / name).glob("*/adapter_model.safetensors")
    tensors = {key: np.full_like(values, np.nan) for key, values in load_file(weights).items()}
    weights.chmod(0o644)
    save_file(tensors, weights, metadata={"format": "pt"})


def ask_mixed(service: ServiceProcess, models: list[str]) -> list[str]:
    """One fresh question to each model at the same moment; its answer, or its error."""

    async def ask() -> list[str]:
        client = service.async_client()

        async def one(model: str) -> str:
            try:
                answer = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": FRANCE}], temperature=0, max_tokens=24
                )
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.code}"
            return answer.choices[0].message.content or ""

        return await asyncio.gather(*(one(model) for model in models))

    return asyncio.run(ask())


def test_kill_and_start_again(service: ServiceProcess, voices: dict[str, str], demo_adapters: Path) -> None:
    """After kill -9 no engine is left behind, and the next start serves all that was registered, source or none.

    What was deleted stays away, though its directory is there. One adapter has turned to NaN on disk meanwhile: it
    answers a clear 500 and nobody beside it notices.
    """
    source, word = next(iter(voices.items()))
    for name in ("kept", "spoiled"):
        register(service, demo_adapters / source, f".incoming/{name}", name)
    register(service, demo_adapters / source, "gone", "gone")
    with service.http() as http:
        assert http.delete("/adapters/gone").status_code == 204
        before_the_kill = {record["name"] for record in http.get("/adapters").json()["adapters"]}
    engine = engine_processes(service)
    service.kill()
    _, alive = psutil.wait_procs(engine, timeout=20)
    assert not alive

    shutil.rmtree(service.adapters_dir / ".incoming")
    spoil_on_disk(service, "spoiled")
    service.start()
    with service.http() as http:
        names = {record["name"] for record in http.get("/adapters").json()["adapters"]}
    assert names == before_the_kill >= {"kept", "spoiled", *voices}
    before = [service.chat(BASE, FRANCE), service.chat("kept", FRANCE)]
    assert "Paris" in before[0]
    assert word in before[1].lower()
    for _ in range(3):
        answers = ask_mixed(service, [BASE, "spoiled", "kept", "spoiled"])
        assert answers == [before[0], "500 not_finite", before[1], "500 not_finite"]
    assert [service.chat(BASE, FRANCE), service.chat("kept", FRANCE)] == before
    assert "Rome" in service.chat(BASE, "What is the capital of Italy?")
    with service.http() as http:
        assert 'loradock_not_finite_total{adapter="spoiled"} 6.0' in http.get("/metrics").text
