"""The metrics page: which series there are, and that they go when their adapter goes."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry import LORA_INFO, Telemetry

pytestmark = pytest.mark.anyio

ENGINE = b"""\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 1.0
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="pirate@1",waiting_lora_adapters=""} 1.79e+09
# HELP vllm:lora_requests_info_of_another_kind A name that only begins alike.
# TYPE vllm:lora_requests_info_of_another_kind gauge
vllm:lora_requests_info_of_another_kind 2.0
"""


@pytest.fixture
def telemetry() -> Telemetry:
    telemetry = Telemetry("base")
    telemetry.serve("pirate")
    return telemetry


async def series(telemetry: Telemetry, engine: bytes = b"") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the page, as Prometheus itself reads it."""
    text = (await telemetry.page(lambda: engine)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def answered(telemetry: Telemetry, name: str, status: int = 200, first_token: float | None = 0.2) -> None:
    telemetry.answered(name, status, prompt_tokens=7, completion_tokens=3, first_token=first_token)


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_a_request_is_counted_under_its_name_and_status(telemetry):
    answered(telemetry, "pirate")
    answered(telemetry, "pirate", 499, None)
    page = await series(telemetry)
    assert page[key("loradock_requests_total", adapter="pirate", code="200")] == 1
    assert page[key("loradock_requests_total", adapter="pirate", code="499")] == 1
    assert page[key("loradock_tokens_total", adapter="pirate", kind="prompt")] == 14
    assert page[key("loradock_tokens_total", adapter="pirate", kind="completion")] == 6
    assert page[key("loradock_time_to_first_token_seconds_count", adapter="pirate")] == 1
    assert page[key("loradock_time_to_first_token_seconds_sum", adapter="pirate")] == pytest.approx(0.2)


async def test_a_name_that_is_not_served_is_no_label(telemetry):
    answered(telemetry, "nobody-registered-this")
    assert not [labels for _, labels in await series(telemetry) if ("adapter", "nobody-registered-this") in labels]


async def test_a_removed_adapter_takes_its_series_along_and_a_late_request_does_not_bring_them_back(telemetry):
    answered(telemetry, "base")
    answered(telemetry, "pirate")
    telemetry.retire("pirate")
    answered(telemetry, "pirate")
    page = await series(telemetry)
    assert not [labels for _, labels in page if ("adapter", "pirate") in labels]
    assert page[key("loradock_requests_total", adapter="base", code="200")] == 1


async def test_a_name_that_comes_back_counts_from_nothing(telemetry):
    answered(telemetry, "pirate")
    telemetry.retire("pirate")
    telemetry.serve("pirate")
    answered(telemetry, "pirate")
    page = await series(telemetry)
    assert page[key("loradock_requests_total", adapter="pirate", code="200")] == 1


async def test_the_engines_own_lora_info_is_replaced_by_one_series_with_public_names(telemetry):
    telemetry.max_loras = 4
    telemetry.serve("poet")
    with telemetry.running("poet"), telemetry.running("pirate"), telemetry.running("pirate"), telemetry.waiting("slow"):
        page = await series(telemetry, ENGINE)
    infos = [dict(labels) for name, labels in page if name == LORA_INFO]
    assert infos == [{"max_lora": "4", "running_lora_adapters": "pirate,poet", "waiting_lora_adapters": "slow"}]
    assert page[key("vllm:num_requests_running", engine="0")] == 1
    assert page[key("vllm:lora_requests_info_of_another_kind")] == 2


async def test_an_adapter_is_running_until_its_last_request_has_ended(telemetry):
    telemetry.max_loras = 1
    with telemetry.running("pirate"):
        with telemetry.running("pirate"):
            pass
        page = await series(telemetry)
        assert key(LORA_INFO, max_lora="1", running_lora_adapters="pirate", waiting_lora_adapters="") in page
    page = await series(telemetry)
    assert key(LORA_INFO, max_lora="1", running_lora_adapters="", waiting_lora_adapters="") in page


async def test_states_loads_and_refusals_are_on_the_page(telemetry):
    telemetry.watch_states(lambda: {"ready": 2, "failed": 1})
    telemetry.loaded("ok", 0.3)
    telemetry.loaded("rejected", 0.1)
    telemetry.refused("queue_full")
    page = await series(telemetry)
    assert page[key("loradock_adapters", state="ready")] == 2
    assert page[key("loradock_adapters", state="failed")] == 1
    assert page[key("loradock_adapter_loads_total", result="ok")] == 1
    assert page[key("loradock_adapter_loads_total", result="rejected")] == 1
    assert page[key("loradock_adapter_load_seconds_count")] == 2
    assert page[key("loradock_refusals_total", code="queue_full")] == 1
