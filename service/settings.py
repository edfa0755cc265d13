"""Every setting of `loradock serve`: a flag, a `LORADOCK_*` variable and a default, in that order of precedence."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, CliUnknownArgs, NoDecode, SettingsConfigDict

from service.errors import ConfigurationError

PREFIX = "LORADOCK_"
TOKEN_CEILING = 65528
"""vLLM's LoRA kernels once refused larger batches; kept as the ceiling so that every batch stays comparable."""
CLIENT_VARIABLES = frozenset({PREFIX + "URL"})
"""Read by the commands that speak to a running service; `serve` lets them be."""


def _below_ceiling(budget: int) -> int:
    if budget > TOKEN_CEILING:
        raise ValueError(f"the token budget is never above {TOKEN_CEILING} while LoRA is on; {budget} was asked for")
    return budget


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Paths = Annotated[list[Path], NoDecode, BeforeValidator(_split)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""Repeated as a flag, separated by commas as a variable."""


class Settings(BaseSettings):
    """What a running service was told. Frozen; where vLLM has the setting, it has vLLM's name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_ignore_unknown_args=True,
        cli_prog_name="loradock serve",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model: str = Field(description="The base model: a directory, or a hub id already in the local cache.")
    base_model_name: str | None = Field(
        None, description="What the base is called by adapters; else read from its config.json."
    )
    served_model_name: str | None = Field(None, description="The base's public name; else the one adapters know it by.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    adapters_dir: Path | None = Field(None, description="Each direct subdirectory is an adapter of that name.")
    adapter_path: Paths = Field(
        default_factory=list, description="Further directories whose adapters may be registered by absolute path."
    )
    state_dir: Path = Field(Path("~/.local/state/loradock"), description="Where the registry keeps what it serves.")
    watch: bool = Field(True, description="Publish what is put into the adapters directory while running.")
    watch_settle: float = Field(
        1.0, ge=0, le=3600, description="Seconds a directory must be unchanged before it is published."
    )
    watch_retire: bool = Field(False, description="Stop serving an adapter when its directory is removed.")
    watch_polling: bool | None = Field(
        None, description="Look for changes instead of being told of them; else on network file systems only."
    )
    scan_timeout: float = Field(120.0, gt=0, description="Seconds after which readiness no longer waits for the scan.")
    allow_base_mismatch: Names = Field(
        default_factory=list, description="Scanned adapters that may name another base model."
    )
    keep_versions: int = Field(5, ge=1, le=1000, description="Versions kept of each adapter.")
    max_upload_bytes: int = Field(4 << 30, ge=1 << 16, description="Largest upload, packed or unpacked.")

    token_budget: Annotated[int, AfterValidator(_below_ceiling)] = Field(
        TOKEN_CEILING, ge=64, description=f"Prompt tokens in flight at once; never above {TOKEN_CEILING}."
    )
    max_queued_tokens: int = Field(
        8 * TOKEN_CEILING, ge=1, description="Prompt tokens that may wait before requests are turned away with 429."
    )
    request_timeout: float | None = Field(None, gt=0, description="Seconds an answer may take; else any time.")
    admission_patience: float = Field(
        2.0, gt=0, description="Seconds after which a waiting prompt goes before those of busier adapters."
    )
    max_model_len: int | None = Field(None, ge=1, description="Context length; else the base's own.")
    max_loras: int | None = Field(None, ge=1, description="Different adapters in one batch; chosen if not given.")
    max_cpu_loras: int | None = Field(None, ge=1, description="Adapters held in memory; chosen if not given.")
    max_lora_rank: int | None = Field(None, ge=1, description="Largest rank of any adapter; chosen if not given.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs the base is spread over.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="The serving type.")
    engine: Literal["vllm", "echo"] = Field("vllm", description="echo repeats its input: for tests of clients only.")

    shutdown_timeout: float = Field(60.0, ge=0, description="Seconds running requests get to finish after SIGTERM.")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto is console on a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    engine_args: CliUnknownArgs

    @classmethod
    def load(cls, argv: list[str]) -> Settings:
        """Settings from flags, then the environment, then defaults. Raises ConfigurationError naming each bad one."""
        _refuse_unknown_variables()
        try:
            return cls(_cli_parse_args=argv)
        except ValidationError as error:
            raise ConfigurationError(_explain(error)) from None


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known | CLIENT_VARIABLES:
            nearest = get_close_matches(variable, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigurationError(f"{variable} is not a setting of loradock{hint}")


def _explain(error: ValidationError) -> str:
    def line(item: Any) -> str:
        name = ".".join(str(part) for part in item["loc"])
        return f"--{name.replace('_', '-')} ({PREFIX}{name.upper()}): {item['msg'].removeprefix('Value error, ')}"

    return "\n".join(line(item) for item in error.errors())
