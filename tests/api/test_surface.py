"""What the application offers, and what it is built without."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from service.api import openai
from service.engine.port import Call, Operation, Reply

if TYPE_CHECKING:
    from house import House

pytestmark = pytest.mark.anyio

ROUTES = {
    ("post", "/v1/completions"),
    ("post", "/v1/chat/completions"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("post", "/v1/load_lora_adapter"),
    ("post", "/v1/unload_lora_adapter"),
    ("get", "/adapters"),
    ("post", "/adapters"),
    ("get", "/adapters/{name}"),
    ("delete", "/adapters/{name}"),
    ("post", "/adapters/{name}/rollback"),
    ("put", "/adapters/{name}/pin"),
    ("delete", "/adapters/{name}/pin"),
    ("delete", "/adapters/{name}/versions/{version}"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/health"),
    ("get", "/version"),
    ("get", "/metrics"),
}


async def document(house: House) -> dict[str, Any]:
    return (await house.client.get("/openapi.json")).json()


async def test_every_route_of_the_contract_is_in_the_document_and_no_other(house: House):
    paths = (await document(house))["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == ROUTES


async def test_the_document_has_the_engines_own_request_models(house: House):
    described = await document(house)
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/EchoChat"}
    assert set(described["components"]["schemas"]["EchoChat"]["properties"]) >= {"model", "messages", "max_tokens"}
    assert described["info"]["version"] == version("loradock")


async def test_registering_is_described_in_both_its_forms(house: House):
    body = (await document(house))["paths"]["/adapters"]["post"]["requestBody"]["content"]
    assert set(body["application/json"]["schema"]["properties"]) == {"name", "path", "allow_base_mismatch"}
    form = body["multipart/form-data"]["schema"]["properties"]
    assert set(form) == {"name", "allow_base_mismatch", "files", "archive"}


async def test_the_document_can_be_read_in_a_browser(house: House):
    assert "openapi.json" in (await house.client.get("/docs")).text


class Text(BaseModel):
    """One branch of a body, as vLLM's /tokenize has two."""

    model: str | None = None
    prompt: str


class Chat(BaseModel):
    """The other."""

    model: str | None = None
    messages: list[str]


async def test_a_body_may_be_one_of_several_models(house: House, monkeypatch):
    async def run(operation: str, call: Call) -> Reply:
        return Reply(body={"operation": operation, "read_as": type(call.body).__name__})

    house.engine.operations = (Operation("/tokenize", "tokenize", Text | Chat, "Text or chat to token ids"),)
    monkeypatch.setattr(house.engine, "run", run)
    app = FastAPI()
    app.include_router(openai.router(house.engine, house.generation, house.catalog))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        text = await client.post("/tokenize", json={"prompt": "x"})
        chat = await client.post("/tokenize", json={"messages": ["x"]})
        neither = await client.post("/tokenize", json={"ids": [1]})
    assert text.json() == {"operation": "tokenize", "read_as": "Text"}
    assert chat.json() == {"operation": "tokenize", "read_as": "Chat"}
    assert neither.status_code == 422


def test_importing_the_api_imports_neither_vllm_nor_torch():
    script = "import sys, service.api.app; print([m for m in sys.modules if m.split('.')[0] in ('vllm', 'torch')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
