"""The application: every route, what all requests pass, and the one place where errors become answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api import adapters, drop_in, openai, operations
from service.api.failures import ADAPTER_HEADER, failure_of, respond
from service.api.middleware import AccessLog, Backstop, BodyLimits, Doorway
from service.errors import LoradockError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Lifespan

    from service.api.operations import Readiness
    from service.engine.port import Engine
    from service.registry.catalog import Catalog
    from service.serving.generation import Generation
    from service.telemetry import Telemetry

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""A client's X-Request-ID is kept when it looks like one; anything else could forge lines of the log."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the composition root has built and hands over."""

    engine: Engine
    catalog: Catalog
    generation: Generation
    telemetry: Telemetry
    readiness: Readiness
    version: Mapping[str, str]
    """What `/version` answers."""
    max_upload_bytes: int


def create_app(parts: Parts, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The whole HTTP surface. The parts need not be started before `lifespan` does it."""
    app = FastAPI(
        title="loradock",
        summary="Many LoRA adapters beside one base model, proven, versioned and hot-swapped.",
        version=version("loradock"),
        lifespan=lifespan,
    )
    started = [Depends(parts.readiness.demand_started)]
    app.include_router(openai.router(parts.engine, parts.generation, parts.catalog), dependencies=started)
    app.include_router(
        adapters.router(parts.catalog, parts.generation.residency, parts.max_upload_bytes), dependencies=started
    )
    app.include_router(drop_in.router(parts.catalog), dependencies=started)
    app.include_router(operations.router(parts.engine, parts.telemetry, parts.readiness, parts.version))
    _handle_errors(app, parts.telemetry)
    # The last one added is the first a request passes.
    app.add_middleware(BodyLimits, max_upload_bytes=parts.max_upload_bytes)
    app.add_middleware(Backstop)
    app.add_middleware(AccessLog)
    app.add_middleware(CorrelationIdMiddleware, validator=lambda text: bool(REQUEST_ID.fullmatch(text)))
    app.add_middleware(Doorway)
    return app


def _handle_errors(app: FastAPI, telemetry: Telemetry) -> None:
    async def tell(request: Request, error: Exception) -> Response:
        path = request.url.path
        failure = failure_of(error, path)
        telemetry.refused(failure.code)
        response = respond(failure, path)
        if label := getattr(request.state, "adapter", None):
            response.headers[ADAPTER_HEADER] = label
        return response

    for kind in (LoradockError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, tell)
