"""What outlives the process, and what outlives the signal that ends it."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = pytest.mark.engine
FRANCE = "What is the capital of France?"
TOKENS = 100


def deltas(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def stream_through(service: ServiceProcess, number: signal.Signals) -> None:
    """Signal the whole group in the middle of a stream; the stream must reach its end all the same."""
    body = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "prompt": "Once upon a time",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx2.stream("POST", f"{service.url}/v1/completions", json=body, timeout=300) as answer:
        lines = answer.iter_lines()
        chunks = deltas(lines)
        for _ in range(5):
            next(chunks)
        service.signal_group(number)
        last = list(chunks)[-1]
    assert last["usage"]["completion_tokens"] == TOKENS


def engine_processes(service: ServiceProcess) -> list[psutil.Process]:
    assert service.process is not None
    return psutil.Process(service.process.pid).children(recursive=True)


def test_kill_and_start_again(
    launch: Callable[..., ServiceProcess], voices: dict[str, str], demo_adapters: Path
) -> None:
    """After kill -9 no engine is left behind, and the next start serves all that was registered, source or none.

    Then SIGTERM to the group in mid-stream; then once more with Ctrl-C.
    """
    service = launch()
    name, word = next(iter(voices.items()))
    shutil.copytree(demo_adapters / name, service.adapters_dir / ".incoming" / "kept")
    with service.http() as http:
        answer = http.post("/adapters", json={"name": "kept", "path": ".incoming/kept"})
        assert answer.status_code == 201, answer.text
        assert http.delete(f"/adapters/{name}").status_code in {200, 204}
    engine = engine_processes(service)
    service.kill()
    _, alive = psutil.wait_procs(engine, timeout=20)
    assert not alive

    shutil.rmtree(service.adapters_dir / ".incoming")
    service.start()
    with service.http() as http:
        names = {record["name"] for record in http.get("/adapters").json()["adapters"]}
    assert names == {"kept", *voices} - {name}
    assert word in service.chat("kept", FRANCE).lower()
    stream_through(service, signal.SIGTERM)
    assert service.process is not None
    service.process.wait(60)

    service.start()
    stream_through(service, signal.SIGINT)
    service.process.wait(60)
