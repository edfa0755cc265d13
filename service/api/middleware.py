"""What every request passes on its way in: the access log, the last resort for errors, the limit on bodies.

Pure ASGI throughout: nothing here buffers a stream or moves a request into another task.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect

from service.api.failures import failure_of, respond
from service.serving.generation import CLIENT_LEFT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

MAX_JSON_BYTES: Final = 32 << 20
"""Largest JSON body: a context full of text, images in base64 and tools fits, a bomb doesn't."""

SEND: Final = "loradock.send"
"""Where the scope has the server's own `send`."""

_PROBES: Final = frozenset({"/livez", "/readyz", "/health", "/metrics"})


class Doorway:
    """Keeps the server's own `send` in the scope, for the pieces of a stream.

    All that the others on the way want to know or add is in the response's start, which goes through all of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        scope[SEND] = send
        await self._app(scope, receive, send)


class AccessLog:
    """One line a request, when it is over. Probes are logged at debug level, since they come every few seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note its status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_LEFT
        began = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            write = log.debug if scope["path"] in _PROBES else log.info
            seconds = round(time.monotonic() - began, 4)
            label = scope.get("state", {}).get("adapter")
            served_by = {"adapter": label} if label else {}
            write("request", method=scope["method"], path=scope["path"], status=status, seconds=seconds, **served_by)


class Backstop:
    """Whatever nobody foresaw: whole into the log, a neutral sentence to the client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and answer what it raises, unless an answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def noting(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            return
        except Exception as error:
            log.exception("unexpected_error", method=scope["method"], path=scope["path"])
            if began:
                # Only a broken connection tells the client that what it has is not the whole.
                raise
            await respond(failure_of(error, scope["path"]), scope["path"])(scope, receive, send)


class BodyLimits:
    """Bounds every body while it is read: uploads by their own limit, all others by that of JSON.

    Too large a body is an HTTPException where the body is read, so that the answer has the route's own form.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._json = RequestBodyLimitMiddleware(app, MAX_JSON_BYTES)
        self._upload = RequestBodyLimitMiddleware(app, max_upload_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on through the limit that is its own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limited = self._upload if _is_upload(scope["path"], headers) else self._json
        declared = headers.get("Content-Length", "0")
        if declared.isdecimal() and int(declared) > limited.max_body_size:
            # Starlette's would answer this one itself, in plain text.
            await self._app(scope, _refuse, send)
        else:
            await limited(scope, receive, send)


async def _refuse() -> Message:
    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _is_upload(path: str, headers: Headers) -> bool:
    return path == "/adapters" and headers.get("Content-Type", "").lower().startswith("multipart/form-data")
