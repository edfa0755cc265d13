"""The bodies of the public contract, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    """A body of ours: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Registration(_Strict):
    """A directory to register; a relative path is below the adapters directory."""

    name: str
    path: str
    allow_base_mismatch: bool = False


class UploadFields(_Strict):
    """The short fields of a registration by upload; its files are parts named `files`, or one named `archive`."""

    name: str
    allow_base_mismatch: bool = False


class Rollback(_Strict):
    """The version to make active; without one, the version that was active before this one."""

    version: int | None = Field(None, ge=1, le=9_999_999)


class ProblemItem(_Strict):
    """One thing that is wrong, or as a warning worth a word."""

    code: str
    message: str
    where: str
    remedy: str


class ProblemDetails(BaseModel):
    """An error as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    problems: list[ProblemItem] | None = None


class VersionRecord(_Strict):
    """One version of an adapter."""

    version: int
    digest: str
    rank: int
    bytes: int
    created: str
    residency: Literal["gpu", "cpu", "disk"]
    strength: float | None
    warnings: list[ProblemItem]


class FailureRecord(_Strict):
    """The last attempt to publish that failed."""

    when: str
    digest: str | None
    problems: list[ProblemItem]


class AdapterRecord(_Strict):
    """All that is known about one adapter."""

    name: str
    state: Literal["ready", "loading", "draining", "failed"]
    active: int | None
    base: str | None
    source: str | None
    pinned: bool
    in_flight: int
    last_used: str | None
    problems: list[ProblemItem]
    warnings: list[ProblemItem]
    last_failure: FailureRecord | None
    versions: list[VersionRecord]


class AdapterList(_Strict):
    """Every adapter."""

    adapters: list[AdapterRecord]


class ErrorInfo(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorBody(BaseModel):
    """An error as OpenAI's clients read it."""

    error: ErrorInfo


class ModelCard(BaseModel):
    """A name that requests may ask for, in OpenAI's form with vLLM's additions."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "loradock"
    root: str
    parent: str | None = None
    max_model_len: int | None = None
    permission: list[dict[str, str | int | bool | None]] = []


class ModelList(BaseModel):
    """Every name that requests may ask for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LoadLoraAdapter(BaseModel):
    """vLLM's call; other fields are ignored, as vLLM ignores them."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraAdapter(BaseModel):
    """vLLM's call; other fields are ignored, as vLLM ignores them."""

    lora_name: str
