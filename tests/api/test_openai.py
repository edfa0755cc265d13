"""`/v1`: who answers, under which name, and what is said when nobody can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from service.engine.port import Reply
from service.errors import INTERNAL, ContextLengthExceeded, QueueFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2
    from house import House

pytestmark = pytest.mark.anyio


def complete(model: str | None = "pirate", **fields: Any) -> dict[str, Any]:
    return {"prompt": "ahoy there", **({"model": model} if model else {}), **fields}


def events(answer: httpx2.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line]


def chunks(answer: httpx2.Response) -> str:
    return "".join(json.loads(event)["choices"][0]["text"] for event in events(answer)[:-1])


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def test_an_adapter_answers_and_says_who_it_is(pirate: House):
    answer = await pirate.client.post("/v1/completions", json=complete())
    digest = pirate.catalog.record("pirate")["versions"][0]["digest"]
    assert answer.status_code == 200
    assert answer.headers["X-Loradock-Adapter"] == f"pirate@1 sha256:{digest[:12]}"
    assert answer.json()["choices"][0]["text"] == "pirate@1: ahoy there"
    assert answer.json()["model"] == "pirate"


async def test_a_stream_carries_the_same_header_and_words(pirate: House):
    answer = await pirate.client.post("/v1/completions", json=complete(stream=True))
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Loradock-Adapter"].startswith("pirate@1 sha256:")
    assert events(answer)[-1] == "[DONE]"
    assert chunks(answer) == "pirate@1: ahoy there"


@pytest.mark.parametrize("model", [None, "tiny-base", "base-alias"])
async def test_the_base_answers_under_its_names_and_without_the_header(pirate: House, model):
    answer = await pirate.client.post("/v1/completions", json=complete(model))
    assert answer.json()["choices"][0]["text"] == "base: ahoy there"
    assert "X-Loradock-Adapter" not in answer.headers


async def test_a_version_can_be_asked_for_by_number_and_by_digest(pirate: House):
    digest = pirate.catalog.record("pirate")["versions"][0]["digest"]
    for model in ("pirate@1", f"pirate@{digest[:8]}"):
        answer = await pirate.client.post("/v1/completions", json=complete(model))
        assert answer.json()["model"] == model
        assert answer.json()["choices"][0]["text"].startswith("pirate@1:")


async def test_chat_answers_too(pirate: House):
    body = {"model": "pirate", "messages": [{"role": "user", "content": "ahoy"}]}
    answer = await pirate.client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "pirate@1: ahoy"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["pirat", "pirate@2", "pirate@0123abcd"])
async def test_an_unknown_model_is_404_and_names_the_nearest(pirate: House, model, stream):
    answer = await pirate.client.post("/v1/completions", json=complete(model, stream=stream))
    assert answer.status_code == 404
    error = error_of(answer)
    assert error["code"] == "model_not_found"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "model"
    assert "'pirate'" in error["message"]


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b'{"model": "pirate"}', "prompt"),
        (b'{"prompt": "x", "max_tokens": "many"}', "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens"),
    ],
)
async def test_a_malformed_body_is_400_and_names_the_field(pirate: House, content, param):
    headers = {"Content-Type": "application/json"}
    answer = await pirate.client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert error_of(answer)["type"] == "invalid_request_error"


async def test_a_field_nobody_knows_is_left_to_the_engine(pirate: House):
    answer = await pirate.client.post("/v1/completions", json=complete(no_such_field=1))
    assert answer.status_code == 200


async def test_a_validation_error_does_not_repeat_what_was_sent(pirate: House):
    answer = await pirate.client.post("/v1/completions", json=complete(max_tokens="s3cret" * 1000))
    assert "s3cret" not in answer.text


async def test_models_are_listed_the_base_first(pirate: House):
    listed = (await pirate.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["tiny-base", "pirate"]
    card = listed["data"][-1]
    assert card["root"] == "pirate@1"
    assert card["parent"] == "tiny-base"
    assert card["object"] == "model"
    assert card["max_model_len"] == pirate.engine.limits.max_model_len
    assert str(pirate.state) not in json.dumps(listed)


async def test_a_model_can_be_retrieved_by_each_of_its_names(pirate: House):
    for name, root in (("pirate", "pirate@1"), ("pirate@1", "pirate@1"), ("tiny-base", "tiny-base")):
        card = (await pirate.client.get(f"/v1/models/{name}")).json()
        assert (card["id"], card["root"]) == (name, root)
    unknown = await pirate.client.get("/v1/models/some/where")
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"


async def test_a_lease_is_given_back_with_the_answer(pirate: House):
    await pirate.client.post("/v1/completions", json=complete())
    await pirate.client.post("/v1/completions", json=complete(stream=True))
    await pirate.client.get("/v1/models/pirate")
    assert pirate.catalog.record("pirate")["in_flight"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_wrong_addresses_and_methods_have_the_same_form(pirate: House, method, path, status, code):
    answer = await pirate.client.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code


class Text(BaseModel):
    """One branch of a body."""

    model: str | None = None
    text: str


class Ids(BaseModel):
    """The other."""

    model: str | None = None
    ids: list[int]


def replying(house: House, monkeypatch: pytest.MonkeyPatch, reply: Any) -> None:
    async def run(operation: str, call: Any) -> Reply:
        return await reply() if callable(reply) else reply

    monkeypatch.setattr(house.engine, "run", run)


async def _failing(error: Exception, *, after: int = 0) -> AsyncIterator[str]:
    for _ in range(after):
        yield 'data: {"choices": []}\n\n'
    raise error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextLengthExceeded("too long: 9 of 8", "prompt"), 400, "context_length_exceeded"),
        (QueueFull(3), 429, "queue_full"),
        (RuntimeError("/var/secret"), 500, "internal_error"),
    ],
)
async def test_a_stream_that_fails_before_its_first_event_has_the_failures_status(
    pirate: House, monkeypatch, error, status, code
):
    replying(pirate, monkeypatch, Reply(stream=_failing(error)))
    answer = await pirate.client.post("/v1/completions", json=complete(stream=True))
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert "secret" not in answer.text


async def test_a_full_queue_says_when_to_come_back(pirate: House, monkeypatch):
    replying(pirate, monkeypatch, Reply(stream=_failing(QueueFull(3))))
    answer = await pirate.client.post("/v1/completions", json=complete(stream=True))
    assert answer.headers["Retry-After"] == "3"
    assert error_of(answer)["type"] == "rate_limit_error"
    assert answer.headers["X-Loradock-Adapter"].startswith("pirate@1")


async def test_a_stream_that_fails_later_ends_with_an_error_event(pirate: House, monkeypatch):
    replying(pirate, monkeypatch, Reply(stream=_failing(RuntimeError("/var/secret"), after=1)))
    answer = await pirate.client.post("/v1/completions", json=complete(stream=True))
    assert answer.status_code == 200
    *_, failure, done = events(answer)
    assert json.loads(failure)["error"]["message"] == INTERNAL
    assert done == "[DONE]"
    assert pirate.catalog.record("pirate")["in_flight"] == 0
    assert b'loradock_requests_total{adapter="pirate",code="500"} 1.0' in (await pirate.client.get("/metrics")).content


async def test_an_unexpected_error_says_nothing_of_itself(pirate: House, monkeypatch):
    async def broken() -> Reply:
        raise RuntimeError("/var/lib/secret pirate@1")

    replying(pirate, monkeypatch, broken)
    answer = await pirate.client.post("/v1/completions", json=complete())
    assert answer.status_code == 500
    assert error_of(answer) == {"message": INTERNAL, "type": "server_error", "param": None, "code": "internal_error"}
    assert answer.headers["X-Request-ID"]


async def test_an_error_body_of_the_engines_own_passes_as_it_is(pirate: House, monkeypatch):
    replying(pirate, monkeypatch, Reply(status=418, body={"own": "words"}))
    answer = await pirate.client.post("/v1/completions", json=complete())
    assert (answer.status_code, answer.json()) == (418, {"own": "words"})


async def test_a_proven_adapter_that_the_engine_no_longer_takes_is_the_services_fault(pirate: House):
    await pirate.engine.unload(next(iter(pirate.engine.loaded.values())))
    pirate.engine.refused.add("pirate@1")
    residency = pirate.generation.residency
    await residency.retire("pirate@1")
    answer = await pirate.client.post("/v1/completions", json=complete())
    assert answer.status_code == 503
    assert error_of(answer)["type"] == "server_error"
