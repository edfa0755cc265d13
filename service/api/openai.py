"""`/v1/*` and its neighbours: parse, let serving answer, encode as JSON or server-sent events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
import structlog
from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from service.api.failures import ADAPTER_HEADER, event, failure_of
from service.api.middleware import SEND
from service.api.schemas import ErrorBody, ModelCard, ModelList
from service.errors import LoradockError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from starlette.types import Receive, Scope, Send

    from service.engine.port import Engine, Operation
    from service.registry.catalog import Catalog, ServedModel
    from service.serving.generation import Generation

log = structlog.get_logger(__name__)

_ANSWER: Final[dict[str, Any]] = {
    "content": {"application/json": {}, "text/event-stream": {}},
    "description": "The answer, or its events",
}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "The request can't be answered"},
    "5XX": {"model": ErrorBody, "description": "The service can't answer"},
}


def router(engine: Engine, generation: Generation, catalog: Catalog) -> APIRouter:
    """A route for each of the engine's operations, and the list of models."""
    routes = APIRouter(tags=["inference"], responses=_ERRORS)
    for operation in engine.operations:
        routes.add_api_route(
            operation.path,
            _endpoint(operation, generation),
            methods=["POST"],
            name=operation.name,
            summary=operation.summary,
            responses={200: _ANSWER},
        )
    _add_models(routes, engine, catalog)
    return routes


def _endpoint(operation: Operation, generation: Generation) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def answer(body: Any, request: Request) -> Response:
        return Answer(generation, operation.name, body, request)

    # FastAPI reads the type of the body here; only the engine knows it.
    answer.__annotations__ = {"body": Annotated[operation.request_type, Body()], "request": Request}
    return answer


class Answer(Response):
    """A request that is answered while its response is sent, so that both end together.

    One cancel scope spans the request's whole life. A client that leaves cancels it, also before the first byte;
    that aborts the engine's work and gives back everything the request held.
    """

    def __init__(self, generation: Generation, operation: str, asked: Any, request: Request) -> None:
        super().__init__()
        self._generation = generation
        self._operation = operation
        self._asked = asked
        self._request = request
        self._begun = False
        self._left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Errors are raised until the headers are sent; from then on they are events of the stream."""
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, receive, group.cancel_scope)
            try:
                await self._answer(scope, receive, send)
            except Exception as error:  # noqa: BLE001 (raised below, out of the group, which would wrap it)
                failed = error
            group.cancel_scope.cancel()
        if failed is None or self._left:
            return
        if not self._begun:
            raise failed
        await _end_stream(failed, scope["path"], send)

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """The body has been read, so what is still to be received is the client's leaving."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        scope.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = getattr(self._asked, "model", None)
        async with self._generation.exchange(model) as exchange:
            self._request.state.adapter = exchange.label
            reply = await exchange.answer(self._operation, self._asked, self._request)
            headers = {ADAPTER_HEADER: exchange.label} if exchange.label else {}
            if reply.stream is None:
                response = JSONResponse(reply.body, reply.status, headers)
                self._begun = True
                await response(scope, receive, send)
            else:
                chunks = aiter(reply.stream)
                # Before the headers, so that a failure up to the first chunk keeps its status code.
                first = await anext(chunks, "")
                self._begun = True
                head = StreamingResponse(chunks, 200, headers, "text/event-stream").raw_headers
                await send({"type": "http.response.start", "status": 200, "headers": head})
                await _send_chunks(first, chunks, scope[SEND])


async def _send_chunks(first: str, rest: AsyncIterator[str], send: Send) -> None:
    await send({"type": "http.response.body", "body": first.encode(), "more_body": True})
    async for chunk in rest:
        await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _end_stream(error: Exception, path: str, send: Send) -> None:
    if not isinstance(error, LoradockError):
        log.error("stream_broke", path=path, exc_info=error)
    await send({"type": "http.response.body", "body": event(failure_of(error, path), path), "more_body": False})


def _add_models(routes: APIRouter, engine: Engine, catalog: Catalog) -> None:
    began = int(time.time())

    def card(model: ServedModel) -> ModelCard:
        # vLLM's `root` is the path of the weights; ours names the version and leaks none.
        return ModelCard(
            id=model.name,
            created=int(model.created or began),
            root=f"{model.name}@{model.version}" if model.version else model.name,
            parent=model.base,
            max_model_len=engine.limits.max_model_len,
        )

    @routes.get("/v1/models", summary="List what requests may ask for")
    async def models() -> ModelList:
        return ModelList(data=[card(model) for model in catalog.models()])

    @routes.get("/v1/models/{model:path}", summary="One name that requests may ask for")
    async def model(model: str) -> ModelCard:
        lease = catalog.lease(model)
        lease.release()
        served = next(served for served in catalog.models() if served.name == lease.name)
        root = lease.adapter.name if lease.adapter else served.name
        return card(served).model_copy(update={"id": model, "root": root})
