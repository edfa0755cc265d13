"""Streams that don't reach their end: the client goes, or the request's time is up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from streams import deltas

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


def running(service: ServiceProcess) -> float:
    """Sequences in the engine, as its last step has seen them; so one more is asked for."""
    with service.http() as http:
        http.post("/v1/completions", json={"model": BASE, "prompt": "Hi", "max_tokens": 1})
        page = http.get("/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(line.rpartition(" ")[2])


def test_a_client_that_leaves_takes_its_request_along(service: ServiceProcess, voices: dict[str, str]) -> None:
    """In the engine, in the adapter's leases, and in the metrics."""
    name = next(iter(voices))
    body = LONG | {"model": name, "stream": True}
    with httpx2.stream("POST", f"{service.url}/v1/completions", json=body, timeout=300) as answer:
        chunks = deltas(answer.iter_lines())
        for _ in range(5):
            next(chunks)
    until = time.monotonic() + 10
    with service.http() as http:
        while http.get(f"/adapters/{name}").json()["in_flight"] or running(service):
            assert time.monotonic() < until
        assert f'loradock_requests_total{{adapter="{name}",code="499"}}' in http.get("/metrics").text


def test_a_request_ends_with_its_time(launch: Callable[..., ServiceProcess]) -> None:
    """With a status where nothing has been sent, with an event where a stream has begun; the engine is told."""
    service = launch("--request-timeout", "2")
    body: dict[str, Any] = LONG | {"model": BASE}
    with service.http() as http:
        late = http.post("/v1/completions", json=body)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "request_timeout"
        began = time.monotonic()
        stream = http.post("/v1/completions", json=body | {"stream": True})
        assert time.monotonic() - began < 10
    assert stream.status_code == 200
    *_, last, done = [line for line in stream.text.splitlines() if line]
    assert "2 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
    assert running(service) == 0
