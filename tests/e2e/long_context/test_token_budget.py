"""The token budget on the real engine: a request far above it is answered whole, and never too much is in flight."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from streams import stream_through

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
CEILING = 65528
PROMPTS, LENGTH = 200, 750
CONTEXT = 32768  # long_base's
IN_FLIGHT = re.compile(r"^loradock_budget_tokens_in_flight (\S+)$", re.MULTILINE)
SPLITS = re.compile(r"^loradock_budget_splits_total (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def service(launch: Callable[..., ServiceProcess], long_base: Path) -> ServiceProcess:
    return launch("--served-model-name", "long", model=long_base)


class Sampler(threading.Thread):
    """Reads the tokens in flight as often as it can."""

    def __init__(self, service: ServiceProcess) -> None:
        super().__init__(daemon=True)
        self.seen: list[float] = []
        self.ended = threading.Event()
        self._service = service

    def run(self) -> None:
        with self._service.http() as http:
            while not self.ended.wait(0.02):
                self.seen.append(number(IN_FLIGHT, http.get("/metrics").text))


def number(series: re.Pattern[str], page: str) -> float:
    found = series.search(page)
    assert found
    return float(found[1])


def body(prompts: list[list[int]], **fields: Any) -> dict[str, Any]:
    return {"model": "long", "prompt": prompts, "max_tokens": 2, "temperature": 0} | fields


def prompts(count: int) -> list[list[int]]:
    return [[1000 + number, *range(2000, 2000 + LENGTH - 1)] for number in range(count)]


def choices(line: str) -> list[dict[str, Any]]:
    """What one line of the stream carries; none if it is empty or the closing one."""
    data = line.removeprefix("data: ")
    return json.loads(data)["choices"] if data.startswith("{") else []


def test_two_hundred_prompts(service: ServiceProcess) -> None:
    """150,000 tokens in one request: in order, complete, in parts, and never more than the ceiling in flight."""
    sampler = Sampler(service)
    sampler.start()
    with service.http() as http:
        before = number(SPLITS, http.get("/metrics").text)
        answer = http.post("/v1/completions", json=body(prompts(PROMPTS), return_token_ids=True)).json()
        sampler.ended.set()
        sampler.join()
        after = number(SPLITS, http.get("/metrics").text)
    assert [choice["index"] for choice in answer["choices"]] == list(range(PROMPTS))
    assert [choice["prompt_token_ids"][0] for choice in answer["choices"]] == list(range(1000, 1000 + PROMPTS))
    assert answer["usage"]["prompt_tokens"] == PROMPTS * LENGTH
    assert CEILING / 2 < max(sampler.seen) <= CEILING
    assert after == before + 1


def test_streamed_and_several_answers(service: ServiceProcess) -> None:
    """Streaming and n > 1 obey the same budget: 150,000 tokens."""
    sampler = Sampler(service)
    sampler.start()
    finished = set()
    with (
        service.http() as http,
        http.stream(
            "POST", "/v1/completions", json=body(prompts(100), n=2, stream=True, temperature=1, ignore_eos=True)
        ) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            finished |= {choice["index"] for choice in choices(line) if choice["finish_reason"] == "length"}
    sampler.ended.set()
    sampler.join()
    assert finished == set(range(200))
    assert max(sampler.seen) <= CEILING


def test_a_client_that_leaves(service: ServiceProcess) -> None:
    """What it had waiting is withdrawn and what ran is aborted; the next one is served."""
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{service.url}/v1/completions", json=body(prompts(PROMPTS), max_tokens=500), timeout=1.5)
    with service.http() as http:
        deadline = time.monotonic() + 20
        while number(IN_FLIGHT, http.get("/metrics").text):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert http.post("/v1/completions", json=body(prompts(1))).status_code == 200


def test_one_prompt_of_any_length_that_fits(service: ServiceProcess) -> None:
    """Up to the context it is served; beyond it is the client's error."""
    with service.http() as http:
        fits = http.post("/v1/completions", json=body([[1000] * (CONTEXT - 10)]))
        assert fits.status_code == 200
        assert fits.json()["usage"]["prompt_tokens"] == CONTEXT - 10
        refused = http.post("/v1/completions", json=body([[1000] * (CONTEXT + 10)]))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_ctrl_c_lets_a_stream_end(service: ServiceProcess) -> None:
    """The last one here, since it ends the service."""
    stream_through(service, "long", signal.SIGINT)
