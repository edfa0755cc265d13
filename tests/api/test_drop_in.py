"""vLLM's load and unload calls: its bodies and status codes, our registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tiny_model import write_adapter

if TYPE_CHECKING:
    import httpx2
    from house import House

pytestmark = pytest.mark.anyio


async def load(house: House, name: str, path: str, **fields: Any) -> httpx2.Response:
    return await house.client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **fields})


def refused(answer: httpx2.Response, status: int, kind: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, status, kind)
    return error["message"]


async def test_an_adapter_is_loaded_and_answers(house: House):
    write_adapter(house.adapters / "pirate")
    answer = await load(house, "pirate", "pirate")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'pirate' added successfully.")
    said = await house.client.post("/v1/completions", json={"model": "pirate", "prompt": "ahoy"})
    assert said.json()["choices"][0]["text"] == "pirate@1: ahoy"


async def test_loading_a_name_again_needs_load_inplace_which_makes_a_version(pirate: House):
    write_adapter(pirate.adapters / "pirate", seed=2)
    assert "load_inplace" in refused(await load(pirate, "pirate", "pirate"), 400, "InvalidUserInput")
    assert pirate.catalog.record("pirate")["active"] == 1
    assert (await load(pirate, "pirate", "pirate", load_inplace=True)).status_code == 200
    assert pirate.catalog.record("pirate")["active"] == 2


@pytest.mark.parametrize(
    ("name", "path", "status", "kind"),
    [
        ("", "pirate", 400, "InvalidUserInput"),
        ("pirate", "", 400, "InvalidUserInput"),
        ("tiny-base", "pirate", 400, "InvalidUserInput"),
        ("pirate", "nowhere", 404, "NotFoundError"),
        ("pirate", "empty", 404, "NotFoundError"),
        ("pirate", "broken", 400, "InvalidUserInput"),
    ],
)
async def test_what_cannot_be_loaded_has_vllms_status(house: House, name, path, status, kind):
    write_adapter(house.adapters / "pirate")
    write_adapter(house.adapters / "broken", use_dora=True)
    (house.adapters / "empty").mkdir()
    message = refused(await load(house, name, path), status, kind)
    assert str(house.adapters) not in message


async def test_three_dimensional_weights_are_refused_rather_than_ignored(house: House):
    write_adapter(house.adapters / "pirate")
    refused(await load(house, "pirate", "pirate", is_3d_lora_weight=True), 400, "InvalidUserInput")


async def test_unloading_removes(pirate: House):
    answer = await pirate.client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate", "lora_int_id": 7})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'pirate' removed successfully.")
    assert pirate.catalog.records() == []
    again = await pirate.client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
    refused(again, 404, "NotFoundError")
    refused(await pirate.client.post("/v1/unload_lora_adapter", json={"lora_name": ""}), 400, "InvalidUserInput")
