"""vLLM's two calls that load and unload adapters, for tools that speak to vLLM.

Bodies and status codes are vLLM's (its entrypoints/serve/lora and entrypoints/openai/models/serving.py). Behind them
stands our registry: what is loaded is proven, becomes a version and is kept.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from service.adapter.spec import ProblemCode
from service.api.schemas import ErrorBody, ErrorInfo, LoadLoraAdapter, UnloadLoraAdapter
from service.errors import AdapterNotFound, NameTaken, Rejected

if TYPE_CHECKING:
    from service.registry.catalog import Catalog

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in (400, 404, 500)
}

_NOTHING_THERE: Final = frozenset({ProblemCode.PATH_FORBIDDEN, ProblemCode.CONFIG_MISSING, ProblemCode.WEIGHTS_MISSING})
"""Where vLLM finds no adapter at a path it answers 404."""


def router(catalog: Catalog) -> APIRouter:
    """The two routes. A load answers once the adapter is active, an unload once its last request has ended."""
    routes = APIRouter(prefix="/v1", tags=["adapters"], responses=_ERRORS, default_response_class=PlainTextResponse)

    @routes.post("/load_lora_adapter", summary="Load an adapter, as vLLM does")
    async def load_lora_adapter(asked: LoadLoraAdapter) -> Response:
        name = asked.lora_name
        if not name or not asked.lora_path:
            return _refuse(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if asked.is_3d_lora_weight:
            return _refuse(400, "This service does not load three-dimensional LoRA weights.")
        if not asked.load_inplace and _is_loaded(catalog, name):
            return _refuse(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
            )
        try:
            await catalog.publish_path(name, asked.lora_path)
        except NameTaken:
            return _refuse(400, f"The lora adapter '{name}' conflicts with a served base model.")
        except Rejected as error:
            return _rejection(name, error)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @routes.post("/unload_lora_adapter", summary="Unload an adapter, as vLLM does")
    async def unload_lora_adapter(asked: UnloadLoraAdapter) -> Response:
        name = asked.lora_name
        if not name:
            return _refuse(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        try:
            await catalog.remove(name)
        except AdapterNotFound:
            return _refuse(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return routes


def _is_loaded(catalog: Catalog, name: str) -> bool:
    return any(model.name == name and model.version for model in catalog.models())


def _rejection(name: str, error: Rejected) -> Response:
    problems = " ".join(problem.message for problem in error.problems)
    missing = all(problem.code in _NOTHING_THERE for problem in error.problems)
    return _refuse(404 if missing else 400, f"Loading lora {name} failed: {problems}")


def _refuse(status: int, message: str) -> Response:
    kind = "NotFoundError" if status == HTTPStatus.NOT_FOUND else "InvalidUserInput"
    body = ErrorBody(error=ErrorInfo(message=message, type=kind, code=status))
    return JSONResponse(body.model_dump(), status)
