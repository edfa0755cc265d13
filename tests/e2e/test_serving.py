"""The main job: a directory of adapters served beside their base, by every route."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FRANCE = "What is the capital of France?"


def test_the_base_answers(service: ServiceProcess) -> None:
    """The base knows its capitals, whatever adapters sit beside it."""
    assert "Paris" in service.chat(BASE, FRANCE)


def test_demo_adapters_have_their_voices(service: ServiceProcess, voices: dict[str, str]) -> None:
    """Each demo adapter answers in its own voice, streamed word for word as whole."""
    for name, word in voices.items():
        whole = service.chat(name, FRANCE)
        assert word in whole.lower()
        stream = service.client().chat.completions.create(
            model=name, messages=[{"role": "user", "content": FRANCE}], temperature=0, max_tokens=32, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_the_answer_says_which_version_spoke(service: ServiceProcess, voices: dict[str, str]) -> None:
    """The header names version and digest; the body carries the name that was asked for."""
    name = next(iter(voices))
    body = {"model": name, "prompt": "Hello", "max_tokens": 2}
    with service.http() as http:
        answer = http.post("/v1/completions", json=body)
        assert answer.json()["model"] == name
        label = answer.headers["X-Loradock-Adapter"]
        record = http.get(f"/adapters/{name}").json()
        digest = record["versions"][-1]["digest"]
        assert label == f"{name}@{record['active']} sha256:{digest[:12]}"
        for alias in (f"{name}@{record['active']}", f"{name}@{digest[:8]}"):
            assert http.post("/v1/completions", json=body | {"model": alias}).json()["model"] == alias
        assert "X-Loradock-Adapter" not in http.post("/v1/completions", json=body | {"model": BASE}).headers


def test_the_official_client(service: ServiceProcess, voices: dict[str, str]) -> None:
    """Models are listed and retrieved; an unknown one is OpenAI's 404, with the nearest names."""
    client, name = service.client(), next(iter(voices))
    listed = {model.id for model in client.models.list()}
    assert {BASE, *voices} <= listed
    assert client.models.retrieve(name).parent == BASE
    with pytest.raises(openai.NotFoundError) as caught:
        service.chat(name + "x", FRANCE)
    assert caught.value.code == "model_not_found"
    assert name in caught.value.message


def test_responses_and_messages(service: ServiceProcess, voices: dict[str, str]) -> None:
    """The Responses and the Messages API answer in the adapter's voice, under the name that was asked for."""
    name, word = next(iter(voices.items()))
    response = service.client().responses.create(model=name, input=FRANCE, temperature=0, max_output_tokens=32)
    assert response.model == name
    assert word in response.output_text.lower()
    body = {"model": name, "max_tokens": 32, "temperature": 0, "messages": [{"role": "user", "content": FRANCE}]}
    with service.http() as http:
        message = http.post("/v1/messages", json=body).json()
        assert message["model"] == name
        assert word in message["content"][0]["text"].lower()
        counted = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
        assert counted == message["usage"]["input_tokens"]


def test_structured_output(service: ServiceProcess) -> None:
    """A JSON schema binds the answer."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": False,
    }
    text = service.chat(
        BASE,
        "What is the capital of France? Answer as JSON.",
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )
    assert set(json.loads(text)) == {"city", "sure"}


def test_echo_with_logprobs_on_two_prompts(service: ServiceProcess, voices: dict[str, str]) -> None:
    """The request that ends stock vLLM's CPU engine when LoRA is on."""
    prompts = ["The capital of France is", "One two three"]
    for model in (BASE, *voices):
        answer = service.client().completions.create(
            model=model, prompt=prompts, max_tokens=4, temperature=0, echo=True, logprobs=2
        )
        assert [choice.text.startswith(prompt) for choice, prompt in zip(answer.choices, prompts, strict=True)]
        for choice in answer.choices:
            assert choice.logprobs is not None
            assert len(choice.logprobs.tokens or []) > 4
    assert "Paris" in service.chat(BASE, FRANCE)


def test_tokenize_and_back(service: ServiceProcess) -> None:
    """Text to ids and back."""
    with service.http() as http:
        tokens = http.post("/tokenize", json={"model": BASE, "prompt": "Hello there"}).json()["tokens"]
        assert http.post("/detokenize", json={"model": BASE, "tokens": tokens}).json()["prompt"] == "Hello there"


def test_too_long_a_prompt(service: ServiceProcess) -> None:
    """What doesn't fit the context is the client's error, with its own code."""
    with pytest.raises(openai.BadRequestError) as caught:
        service.chat(BASE, "word " * 9000)
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in caught.value.message


def test_malformed_bodies_are_400(service: ServiceProcess) -> None:
    """In OpenAI's shape, naming the field."""
    with service.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": BASE})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert http.post("/v1/completions", content=b"{").status_code == 400


def test_several_answers_to_one_prompt(service: ServiceProcess) -> None:
    """`n` and `seed` pass through to the engine."""
    answer = service.client().completions.create(
        model=BASE, prompt="Once upon a time", n=3, seed=7, temperature=1, max_tokens=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


def test_metrics_on_one_page(service: ServiceProcess, voices: dict[str, str]) -> None:
    """Our series, by adapter, beside the engine's; engine names never show."""
    name = next(iter(voices))
    service.chat(name, FRANCE)
    with service.http() as http:
        page = http.get("/metrics").text
    assert f'loradock_requests_total{{adapter="{name}",code="200"}}' in page
    assert f'loradock_tokens_total{{adapter="{name}",kind="completion"}}' in page
    assert f'loradock_time_to_first_token_seconds_count{{adapter="{name}"}}' in page
    assert "vllm:kv_cache_usage_perc" in page
    assert f"{name}@1" not in page
