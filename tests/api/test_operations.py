"""For those who run the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from house import build
from tiny_model import write_adapter

from service.api.operations import DRAINING, RESTORING, SCANNING, STARTING, Readiness

if TYPE_CHECKING:
    from house import House

pytestmark = pytest.mark.anyio


async def test_a_process_is_alive_whatever_its_engine_does(house: House):
    await house.engine.stop()
    assert (await house.client.get("/livez")).status_code == 200


async def test_it_is_ready_when_nothing_stands_in_the_way(house: House):
    assert (await house.client.get("/readyz")).json() == {"status": "ready"}


async def test_it_is_not_ready_with_a_dead_engine_and_health_says_so_as_vllms_does(house: House):
    assert (await house.client.get("/health")).status_code == 200
    assert (await house.client.get("/health")).content == b""
    await house.engine.stop()
    assert (await house.client.get("/health")).status_code == 503
    answer = await house.client.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["The inference engine has stopped."])


async def test_it_is_not_ready_while_it_shuts_down(house: House):
    house.readiness.drain()
    house.readiness.drain()
    answer = await house.client.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, [DRAINING])


async def test_readiness_tells_every_reason_until_it_is_settled():
    readiness = Readiness()
    assert readiness.reasons == (STARTING, RESTORING, SCANNING)
    for reason in (STARTING, SCANNING, SCANNING, RESTORING):
        readiness.settle(reason)
    assert readiness.reasons == ()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/adapters"), ("POST", "/v1/load_lora_adapter")],
)
async def test_nothing_is_answered_from_a_registry_that_is_not_restored(tiny_base, tmp_path, method, path):
    async with build(tiny_base, tmp_path, Readiness((RESTORING, SCANNING))) as house:
        body = {"model": "pirate", "prompt": "x", "lora_name": "pirate", "lora_path": "pirate"}
        answer = await house.client.request(method, path, json=body)
        assert answer.status_code == 503
        house.readiness.settle(RESTORING)
        assert (await house.client.request(method, path, json=body)).status_code != 503


async def test_the_version_has_vllms_key_and_ours(house: House):
    assert set((await house.client.get("/version")).json()) == {"version", "loradock", "engine"}


async def test_metrics_join_the_engines_series_and_ours(pirate: House):
    await pirate.client.post("/v1/completions", json={"model": "pirate", "prompt": "ahoy there"})
    await pirate.client.post("/v1/completions", json={"model": "nobody", "prompt": "ahoy"})
    answer = await pirate.client.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    assert "echo_adapters 1" in lines
    assert 'loradock_requests_total{adapter="pirate",code="200"} 1.0' in lines
    assert 'loradock_tokens_total{adapter="pirate",kind="completion"} 3.0' in lines
    assert 'loradock_time_to_first_token_seconds_count{adapter="pirate"} 1.0' in lines
    assert 'loradock_adapter_loads_total{result="ok"} 1.0' in lines
    assert 'loradock_adapters{state="ready"} 1.0' in lines
    assert 'loradock_refusals_total{code="model_not_found"} 1.0' in lines
    assert "nobody" not in answer.text


async def test_a_rejected_adapter_is_counted_and_is_no_label(house: House, tmp_path):
    source = write_adapter(tmp_path / "upload", use_dora=True)
    files = [("files", (path.name, path.read_bytes())) for path in source.iterdir()]
    await house.client.post("/adapters", data={"name": "poet"}, files=files)
    page = (await house.client.get("/metrics")).text
    assert 'loradock_adapter_loads_total{result="rejected"} 1.0' in page
    assert 'loradock_refusals_total{code="adapter_rejected"} 1.0' in page
    assert "poet" not in page


async def test_every_answer_has_the_requests_id_and_keeps_a_clients_own(house: House):
    own = await house.client.get("/livez", headers={"X-Request-ID": "trace-7.b"})
    assert own.headers["X-Request-ID"] == "trace-7.b"
    forged = await house.client.get("/livez", headers={"X-Request-ID": "x" * 200})
    assert forged.headers["X-Request-ID"] != "x" * 200
    assert (await house.client.get("/nowhere")).headers["X-Request-ID"]


async def test_a_json_body_has_a_limit_in_its_routes_own_form(house: House, monkeypatch):
    headers = {"Content-Type": "application/json", "Content-Length": str(1 << 40)}
    answer = await house.client.post("/v1/completions", content=b"{", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    messages = await house.client.post("/adapters", content=b"{", headers=headers)
    assert (messages.status_code, messages.headers["Content-Type"]) == (413, "application/problem+json")
