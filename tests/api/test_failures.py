"""One failure in three dialects."""

from __future__ import annotations

import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.adapter.spec import Problem, ProblemCode
from service.api.failures import event, failure_of, respond
from service.errors import (
    INTERNAL,
    ConfigurationError,
    ContextLengthExceeded,
    LoradockError,
    ModelNotFound,
    NoCapacity,
    QueueFull,
    Rejected,
    TooLarge,
    VersionNotFound,
)

PROBLEM = Problem(ProblemCode.NOT_LORA, "It is a prompt tuning.", "peft_type", "Train a LoRA.")
COMPLETIONS, MESSAGES, ADAPTERS = "/v1/completions", "/v1/messages", "/adapters/x/rollback"


def told(error: Exception, path: str) -> tuple[int, dict]:
    answer = respond(failure_of(error, path), path)
    return answer.status_code, json.loads(answer.body)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (ModelNotFound("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (ContextLengthExceeded("9 of 8", "prompt"), 400, "invalid_request_error", "context_length_exceeded", "prompt"),
        (QueueFull(2), 429, "rate_limit_error", "queue_full", None),
        (LoradockError(), 500, "server_error", "internal_error", None),
        (KeyError("/root/secret"), 500, "server_error", "internal_error", None),
    ],
)
def test_openais_form(error, status, kind, code, param):
    assert told(error, COMPLETIONS) == (
        status,
        {"error": {"message": getattr(error, "message", INTERNAL), "type": kind, "param": param, "code": code}},
    )


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ModelNotFound("x"), 404, "not_found_error"),
        (ContextLengthExceeded("9 of 8"), 400, "invalid_request_error"),
        (QueueFull(2), 429, "rate_limit_error"),
        (HTTPException(413), 413, "request_too_large"),
        (ValueError(), 500, "api_error"),
    ],
)
def test_anthropics_form(error, status, kind):
    got, body = told(error, MESSAGES)
    assert got == status
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Rejected([PROBLEM], "x"), 422, "urn:loradock:adapter_rejected"),
        (NoCapacity([PROBLEM]), 409, "urn:loradock:no_capacity"),
        (TooLarge([PROBLEM]), 413, "urn:loradock:too_large"),
    ],
)
def test_rfc_9457s_form_with_every_problem(error, status, kind):
    assert told(error, ADAPTERS) == (
        status,
        {
            "type": kind,
            "title": kind.rpartition(":")[2].replace("_", " ").capitalize(),
            "status": status,
            "detail": error.message,
            "problems": [PROBLEM.as_dict()],
        },
    )


def test_rfc_9457s_form_has_its_own_media_type_and_no_problems_where_there_are_none():
    error = VersionNotFound("x", "version 3")
    answer = respond(failure_of(error, ADAPTERS), ADAPTERS)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "problems" not in json.loads(answer.body)


def test_a_name_that_only_begins_like_ours_speaks_openais():
    assert "error" in told(HTTPException(404), "/adaptersnot")[1]
    assert "error" in told(HTTPException(404), "/v1/messages_not")[1]
    assert told(HTTPException(404), "/v1/messages_not")[1].get("type") is None


def test_headers_of_a_refused_method_are_kept():
    answer = respond(failure_of(HTTPException(405, headers={"Allow": "POST"}), COMPLETIONS), COMPLETIONS)
    assert answer.headers["Allow"] == "POST"


def test_validation_names_fields_and_leaves_out_what_pydantic_puts_between():
    found = [
        {"type": "missing", "loc": ("body", "TokenizeChatRequest", "messages"), "msg": "Field required"},
        {"type": "int_type", "loc": ("body", "prompt", "list[int]", 3), "msg": "Should be an int", "input": "secret"},
        {"type": "str_type", "loc": ("body", "function-wrap[check()]", "stop", "str"), "msg": "Value error, no"},
    ]
    _, body = told(RequestValidationError(found), COMPLETIONS)
    assert body["error"]["message"] == "messages: Field required; prompt.3: Should be an int; stop: no"
    assert body["error"]["param"] == "messages"


def test_a_thousand_validation_errors_are_told_in_a_few_words():
    found = [{"type": "missing", "loc": ("body", f"f{i}"), "msg": "Field required"} for i in range(1000)]
    _, body = told(RequestValidationError(found), COMPLETIONS)
    assert body["error"]["message"].endswith("; and 990 more")
    assert len(body["error"]["message"]) < 500


def test_validation_of_our_own_bodies_is_422_with_one_problem_a_field():
    found = [{"type": "missing", "loc": ("body", "name"), "msg": "Field required"}]
    status, body = told(RequestValidationError(found), "/adapters")
    assert status == 422
    assert body["problems"] == [{"code": "invalid_request", "message": "Field required", "where": "name", "remedy": ""}]


def test_a_broken_stream_ends_in_the_form_its_client_reads():
    failure = failure_of(ConfigurationError(), COMPLETIONS)
    openai = event(failure, COMPLETIONS).decode()
    assert openai.startswith('data: {"error": {')
    assert openai.endswith("\n\ndata: [DONE]\n\n")
    anthropic = event(failure, MESSAGES).decode()
    assert anthropic.startswith('event: error\ndata: {"type": "error", ')
    assert anthropic.endswith("}\n\n")
