"""OpenAI's own Python client against a real socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import openai
import pytest
from tiny_model import write_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def client(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    source = write_adapter(tmp_path_factory.mktemp("client") / "official", seed=11)
    files = [("files", (path.name, path.read_bytes())) for path in source.iterdir()]
    httpx2.post(f"{service_url}/adapters", data={"name": "official"}, files=files).raise_for_status()
    with openai.OpenAI(base_url=f"{service_url}/v1", api_key="none", max_retries=0) as client:
        yield client
    httpx2.delete(f"{service_url}/adapters/official").raise_for_status()


def test_it_completes(client):
    answer = client.completions.create(model="official", prompt="ahoy there")
    assert answer.choices[0].text == "official@1: ahoy there"
    assert answer.usage.completion_tokens == 3


def test_it_chats(client):
    answer = client.chat.completions.create(model="official", messages=[{"role": "user", "content": "ahoy"}])
    assert answer.choices[0].message.content == "official@1: ahoy"


def test_it_streams(client):
    words = client.completions.create(model="official", prompt="ahoy there", stream=True)
    assert "".join(chunk.choices[0].text for chunk in words) == "official@1: ahoy there"


def test_it_streams_a_chat(client):
    messages = [{"role": "user", "content": "ahoy there"}]
    chunks = client.chat.completions.create(model="official", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "official@1: ahoy there"


def test_it_lists_and_retrieves_models(client):
    assert "official" in [model.id for model in client.models.list()]
    assert client.models.retrieve("official").id == "official"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_it_reads_our_headers(client):
    answer = client.completions.with_raw_response.create(model="official", prompt="ahoy")
    assert answer.headers["X-Loradock-Adapter"].startswith("official@1 sha256:")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_its_not_found_error(client, stream):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="x", stream=stream)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_bad_field_is_its_bad_request_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="official", prompt="x", max_tokens=0)
    assert caught.value.param == "max_tokens"


def test_leaving_a_stream_does_no_harm(client: openai.OpenAI):
    with client.completions.create(model="official", prompt="one two three", stream=True) as words:
        next(iter(words))
    assert client.completions.create(model="official", prompt="ahoy").choices[0].text == "official@1: ahoy"
