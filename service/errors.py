"""What can go wrong, each with the status, code and words a client is shown.

LoradockError                      500 internal_error
├── NotFinite                      500 not_finite
├── ConfigurationError             the service refuses to start, and says why
├── InvalidRequest                 400 invalid_request
│   └── ContextLengthExceeded      400 context_length_exceeded
├── ResourceNotFound               404 not_found
├── ModelNotFound                  404 model_not_found
├── AdapterNotFound                404 adapter_not_found
│   └── VersionNotFound            404 version_not_found
├── Conflict                       409 conflict
├── Rejected                       422 adapter_rejected (with every problem found)
│   ├── NameTaken                  409 name_taken
│   ├── NoCapacity                 409 no_capacity
│   └── TooLarge                   413 too_large
├── QueueFull                      429 queue_full
├── NotSupported                   501 not_supported
├── TimedOut                       504 request_timeout
└── Unavailable                    503 unavailable
    ├── EngineDead                 503 engine_dead
    └── StoreUnavailable           503 store_unavailable

The message of every class here is written for the client: no path, no trace, no other tenant's name.
Whatever else is raised reaches the log whole and the client as `INTERNAL`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.adapter.spec import Problem

INTERNAL = "The service met an unexpected error. It has been logged with this request's id."


class LoradockError(Exception):
    """Root of everything this service raises on purpose; `message` is public."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str = INTERNAL) -> None:
        super().__init__(message)
        self.message = message


class NotFinite(LoradockError):
    """The model computed something that is no number; the answer would have been made up."""

    code = "not_finite"

    def __init__(self) -> None:
        super().__init__("The model's answer contained numbers that are not finite. Its weights may be damaged.")


class ConfigurationError(LoradockError):
    """The service can't run as it was asked to; raised before it listens, never over HTTP."""

    code = "configuration"


class InvalidRequest(LoradockError):
    """The request itself is wrong; `param` names the field."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """The prompt, with what is to be generated, doesn't fit the model's context."""

    code = "context_length_exceeded"


class ResourceNotFound(LoradockError):
    """Something a client refers to by an id the service gave it, such as a stored response, is not there."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class ModelNotFound(LoradockError):
    """No base, adapter or version answers to the name."""

    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"

    def __init__(self, model: str, nearest: Sequence[str] = ()) -> None:
        hint = f" Did you mean {', '.join(repr(name) for name in nearest)}?" if nearest else ""
        super().__init__(f"The model {model!r} does not exist.{hint}")


class AdapterNotFound(LoradockError):
    """The registry has no adapter of that name."""

    status = HTTPStatus.NOT_FOUND
    code = "adapter_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no adapter {name!r}.")


class VersionNotFound(AdapterNotFound):
    """The adapter exists, the version doesn't."""

    code = "version_not_found"

    def __init__(self, name: str, wanted: str) -> None:
        LoradockError.__init__(self, f"The adapter {name!r} has no {wanted}.")


class Conflict(LoradockError):
    """What was asked contradicts the present state."""

    status = HTTPStatus.CONFLICT
    code = "conflict"


class Rejected(LoradockError):
    """An adapter that must not be served; carries all that is wrong with it, not just the first."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "adapter_rejected"

    def __init__(self, problems: Sequence[Problem], name: str | None = None) -> None:
        subject = f"The adapter {name!r}" if name else "The adapter"
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{subject} was not accepted: {count}.")
        self.problems = tuple(problems)


class NameTaken(Rejected):
    """The name belongs to the base model."""

    status = HTTPStatus.CONFLICT
    code = "name_taken"


class NoCapacity(Rejected):
    """Granting this would leave no room to swap adapters."""

    status = HTTPStatus.CONFLICT
    code = "no_capacity"


class TooLarge(Rejected):
    """The upload is larger than the service accepts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "too_large"


class QueueFull(LoradockError):
    """More is waiting than the service will hold; `retry_after` is in seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "queue_full"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full. Try again in about {retry_after} s.")
        self.retry_after = retry_after


class TimedOut(LoradockError):
    """The answer wasn't complete within the time requests are given."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The answer was not complete within {seconds:g} s.")


class NotSupported(LoradockError):
    """The base model or the engine can't do what was asked."""

    status = HTTPStatus.NOT_IMPLEMENTED
    code = "not_supported"


class Unavailable(LoradockError):
    """The service can't answer now, and may be able to later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"


class EngineDead(Unavailable):
    """The engine has stopped; the service has to be restarted."""

    code = "engine_dead"

    def __init__(self) -> None:
        super().__init__("The inference engine has stopped.")


class StoreUnavailable(Unavailable):
    """The store can't be written: a full disk, a read-only directory."""

    code = "store_unavailable"
