"""For those who run the service: is it alive, is it ready, what is it, how does it do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from service.errors import LoradockError, Unavailable
from service.telemetry import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.engine.port import Engine
    from service.telemetry import Telemetry

STARTING = "the engine is starting"
RESTORING = "the registry is being restored"
SCANNING = "the first scan of the adapters directory is running"
DRAINING = "the service is shutting down"


class Readiness:
    """What still stands between the service and its clients; ready when nothing does."""

    def __init__(self, reasons: Iterable[str] = (STARTING, RESTORING, SCANNING)) -> None:
        self._reasons = list(reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why requests should go elsewhere; empty when they may come."""
        return tuple(self._reasons)

    def settle(self, reason: str) -> None:
        """This one no longer stands in the way."""
        if reason in self._reasons:
            self._reasons.remove(reason)

    async def demand_started(self) -> None:
        """Raise Unavailable while there is no engine or no registry: until then nobody knows which names exist."""
        for reason in (STARTING, RESTORING):
            if reason in self._reasons:
                raise Unavailable(f"Not yet: {reason}. Try again shortly.")

    def drain(self) -> None:
        """Shutting down: what runs may finish, nothing new should come."""
        if DRAINING not in self._reasons:
            self._reasons.append(DRAINING)


def router(engine: Engine, telemetry: Telemetry, readiness: Readiness, version: Mapping[str, str]) -> APIRouter:
    """The routes of operation. `version` has vLLM's key `version` and what we add to it."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="Is the process alive?")
    async def livez() -> Response:
        return JSONResponse({"status": "alive"})

    @routes.get("/readyz", summary="Should requests be sent here?", responses={503: {"description": "Not now"}})
    async def readyz() -> Response:
        reasons = readiness.reasons or await _illness(engine)
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, 503)
        return JSONResponse({"status": "ready"})

    @routes.get("/health", summary="Is the engine healthy? As vLLM's.", responses={503: {"description": "No"}})
    async def health() -> Response:
        return Response(status_code=503 if await _illness(engine) else 200)

    @routes.get("/version", summary="What is running here?")
    async def versions() -> Response:
        return JSONResponse(dict(version))

    @routes.get("/metrics", summary="Series for Prometheus, the engine's and ours")
    async def metrics() -> Response:
        return Response(await telemetry.page(engine.metrics), media_type=CONTENT_TYPE)

    return routes


async def _illness(engine: Engine) -> tuple[str, ...]:
    try:
        await engine.check()
    except LoradockError as error:
        return (error.message,)
    return ()
