"""`/adapters*`: what is served under which name."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from service.api.schemas import AdapterList, AdapterRecord, ProblemDetails, Registration, Rollback, UploadFields
from service.api.upload import receive
from service.errors import EngineDead

if TYPE_CHECKING:
    from service.engine.residency import Residency
    from service.registry.catalog import Catalog, Publication

MULTIPART: Final = "multipart/form-data"
_PROBLEM: Final[dict[str, Any]] = {"model": ProblemDetails, "description": "What is wrong, as RFC 9457 has it"}
_UPLOAD_SCHEMA: Final[dict[str, Any]] = UploadFields.model_json_schema() | {
    "properties": UploadFields.model_json_schema()["properties"]
    | {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "archive": {"type": "string", "format": "binary", "description": ".tar, .tar.gz or .zip; instead of files"},
    }
}
_REGISTER: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Registration.model_json_schema()},
            MULTIPART: {"schema": _UPLOAD_SCHEMA},
        },
    }
}


def router(catalog: Catalog, residency: Residency, max_upload_bytes: int) -> APIRouter:
    """The routes below `/adapters`. `max_upload_bytes` bounds an archive's content; its body is bounded before."""
    routes = APIRouter(prefix="/adapters", tags=["adapters"], responses={"4XX": _PROBLEM, "5XX": _PROBLEM})

    @routes.post(
        "",
        status_code=201,
        summary="Register an adapter, by path or by upload; answers once it is proven and active",
        responses={
            200: {"model": AdapterRecord, "description": "It already is the active version"},
            201: {"model": AdapterRecord, "description": "A new version is active"},
        },
        openapi_extra=_REGISTER,
    )
    async def register(request: Request) -> Response:
        content_type = request.headers.get("Content-Type", "")
        if content_type.lower().startswith(MULTIPART):
            return _published(await _upload(catalog, request, content_type, max_upload_bytes))
        asked = await _registration(request, content_type)
        return _published(
            await catalog.publish_path(asked.name, asked.path, allow_base_mismatch=asked.allow_base_mismatch)
        )

    @routes.get("", summary="Every adapter", responses={200: {"model": AdapterList}})
    async def adapters() -> Response:
        await _refresh(residency)
        return JSONResponse({"adapters": catalog.records()})

    @routes.get("/{name}", summary="One adapter", responses={200: {"model": AdapterRecord}})
    async def adapter(name: str) -> Response:
        await _refresh(residency)
        return JSONResponse(catalog.record(name))

    @routes.post("/{name}/rollback", summary="Make another version active", responses={200: {"model": AdapterRecord}})
    async def rollback(name: str, target: Annotated[Rollback | None, Body()] = None) -> Response:
        return JSONResponse(await catalog.rollback(name, target.version if target else None))

    @routes.put("/{name}/pin", summary="Keep it resident", responses={200: {"model": AdapterRecord}})
    async def pin(name: str) -> Response:
        return JSONResponse(await catalog.pin(name))

    @routes.delete("/{name}/pin", summary="Let it be evicted", responses={200: {"model": AdapterRecord}})
    async def unpin(name: str) -> Response:
        return JSONResponse(await catalog.unpin(name))

    @routes.delete("/{name}", status_code=204, summary="Drain, unload and remove it")
    async def remove(name: str) -> Response:
        await catalog.remove(name)
        return Response(status_code=204)

    @routes.delete("/{name}/versions/{version}", status_code=204, summary="Drain, unload and remove one version")
    async def remove_version(name: str, version: int) -> Response:
        await catalog.remove_version(name, version)
        return Response(status_code=204)

    return routes


async def _refresh(residency: Residency) -> None:
    """So that records tell who sits in a slot now; with a dead engine they tell what was last known."""
    with suppress(EngineDead):
        await residency.refresh()


async def _registration(request: Request, content_type: str) -> Registration:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    try:
        return Registration.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([item | {"loc": ("body", *item["loc"])} for item in error.errors()]) from error


async def _upload(catalog: Catalog, request: Request, content_type: str, max_bytes: int) -> Publication:
    async with catalog.scratch() as scratch:
        fields = await receive(content_type, request.stream(), scratch, max_bytes)
        return await catalog.publish(fields.name, scratch / "files", allow_base_mismatch=fields.allow_base_mismatch)


def _published(publication: Publication) -> Response:
    record = publication.record
    status = HTTPStatus.CREATED if publication.created else HTTPStatus.OK
    return JSONResponse(record, status, {"Location": f"/adapters/{record['name']}"})
