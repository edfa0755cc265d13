"""One failure, told in the dialect of whoever asked: OpenAI's, Anthropic's or RFC 9457's.

`/adapters*` speaks RFC 9457, `/v1/messages*` Anthropic's form, everything else OpenAI's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event
from starlette.exceptions import HTTPException

from service.adapter.spec import Problem, ProblemCode
from service.errors import INTERNAL, InvalidRequest, LoradockError, QueueFull, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import Response

ADAPTER_HEADER: Final = "X-Loradock-Adapter"

_MOST_REPORTED: Final = 10
"""Validation errors told at once; a hostile body can cause thousands."""

_FIELD: Final = re.compile(r"[a-z0-9_]+")
_BRANCHES: Final = frozenset({"str", "int", "float", "bool", "none", "list", "dict"})
"""What pydantic writes into a location for the branches of a union, beside the names of classes."""

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_PHRASES: Final = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not answer that method."),
    415: ("unsupported_media_type", "Send application/json or multipart/form-data."),
    413: (ProblemCode.TOO_LARGE, "The request is larger than this service accepts."),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client is told, before a dialect is chosen."""

    status: int
    code: str
    message: str
    param: str | None = None
    problems: Sequence[Mapping[str, str]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def failure_of(error: Exception, path: str) -> Failure:
    """What to tell about `error`; of one that was not raised on purpose, nothing but that it happened."""
    match error:
        case LoradockError():
            return _ours(error)
        case RequestValidationError():
            return _invalid(error, HTTPStatus.UNPROCESSABLE_ENTITY if _is_ours(path) else HTTPStatus.BAD_REQUEST)
        case HTTPException():
            return _of_http(error)
        case _:
            return Failure(500, LoradockError.code, INTERNAL)


def respond(failure: Failure, path: str) -> Response:
    """The failure as a response in the dialect of `path`."""
    media_type = "application/problem+json" if _is_ours(path) else None
    return JSONResponse(_body(failure, path), failure.status, failure.headers, media_type)


def event(failure: Failure, path: str) -> bytes:
    """The failure as the last events of a stream that has already begun."""
    body = json.dumps(_body(failure, path))
    if _is_anthropic(path):
        return format_sse_event(data_str=body, event="error")
    return format_sse_event(data_str=body) + format_sse_event(data_str="[DONE]")


def _is_ours(path: str) -> bool:
    return path == "/adapters" or path.startswith("/adapters/")


def _is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _body(failure: Failure, path: str) -> dict[str, Any]:
    if _is_ours(path):
        return _problem_details(failure)
    if _is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(failure.status, "api_error" if failure.status >= 500 else "invalid_request_error")  # noqa: PLR2004 (HTTP's classes)
        return {"type": "error", "error": {"type": kind, "message": failure.message}}
    return {
        "error": {
            "message": failure.message,
            "type": _openai_type(failure.status),
            "param": failure.param,
            "code": failure.code,
        }
    }


def _openai_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _problem_details(failure: Failure) -> dict[str, Any]:
    body = {
        "type": f"urn:loradock:{failure.code}",
        "title": failure.code.replace("_", " ").capitalize(),
        "status": int(failure.status),
        "detail": failure.message,
    }
    return body if failure.problems is None else body | {"problems": list(failure.problems)}


def _ours(error: LoradockError) -> Failure:
    return Failure(
        int(error.status),
        error.code,
        error.message,
        param=error.param if isinstance(error, InvalidRequest) else _model_param(error),
        problems=[problem.as_dict() for problem in error.problems] if isinstance(error, Rejected) else None,
        headers={"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else {},
    )


def _of_http(error: HTTPException) -> Failure:
    status = int(error.status_code)
    code, message = _PHRASES.get(status, ("http_error", HTTPStatus(status).phrase))
    problems = [Problem(ProblemCode.TOO_LARGE, message, "body").as_dict()] if code == ProblemCode.TOO_LARGE else None
    return Failure(status, str(code), message, problems=problems, headers=error.headers or {})


def _model_param(error: LoradockError) -> str | None:
    return "model" if error.code == "model_not_found" else None


def _invalid(error: RequestValidationError, status: HTTPStatus) -> Failure:
    """Which fields are wrong and why; never the values, which may be large or secret."""
    found = error.errors()
    told = [(_where(item), _why(item)) for item in found[:_MOST_REPORTED]]
    message = "; ".join(f"{where}: {text}" if where else text for where, text in told)
    if len(found) > len(told):
        message += f"; and {len(found) - len(told)} more"
    return Failure(
        int(status),
        InvalidRequest.code,
        message,
        param=told[0][0] or None,
        problems=[{"code": InvalidRequest.code, "message": text, "where": where, "remedy": ""} for where, text in told],
    )


def _why(item: Mapping[str, Any]) -> str:
    if item["type"] == "json_invalid":
        return "The body is not valid JSON."
    return str(item["msg"]).removeprefix("Value error, ")


def _where(item: Mapping[str, Any]) -> str:
    """The field's name, dotted. A union's branches and wrappers, which pydantic puts between, are left out."""
    if item["type"] == "json_invalid":
        return ""
    if named := getattr(item.get("ctx", {}).get("error"), "parameter", None):
        return str(named)
    parts = (str(part) for part in item["loc"][1:])
    return ".".join(part for part in parts if _FIELD.fullmatch(part) and part not in _BRANCHES)
