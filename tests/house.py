"""The whole service but for the real engine: the echo engine, and everything else as it is in production."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import httpx2

from service.api.app import Parts, create_app
from service.api.operations import Readiness
from service.engine.echo import EchoEngine
from service.engine.residency import Residency
from service.registry.catalog import Catalog
from service.registry.store import Store
from service.serving.generation import Generation
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import FastAPI

    from service.adapter.base import Base

BASE, ALIAS = "tiny-base", "base-alias"
MAX_UPLOAD = 1 << 20


class Steps(asyncio.Event):
    """The echo engine's steps, telling when an answer waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> Literal[True]:
        """Wait until steps may be taken."""
        self.reached.set()
        return await super().wait()


@dataclass(frozen=True)
class House:
    """The parts of a service, and a client."""

    engine: EchoEngine
    catalog: Catalog
    generation: Generation
    telemetry: Telemetry
    readiness: Readiness
    app: FastAPI
    client: httpx2.AsyncClient
    adapters: Path
    state: Path


@asynccontextmanager
async def build(base: Base, root: Path, readiness: Readiness | None = None) -> AsyncIterator[House]:
    """Everything, started and, unless told otherwise, ready. State and adapters are below `root`."""
    engine = EchoEngine()
    engine.steps = Steps()
    engine.steps.set()
    residency = Residency(engine, engine.limits.max_cpu_loras)
    telemetry = Telemetry(BASE)
    readiness = readiness or Readiness(())
    adapters = root / "adapters"
    adapters.mkdir(exist_ok=True)
    with Store.open(root / "state") as store:
        catalog = Catalog(
            store,
            engine,
            residency,
            base,
            served=(BASE, ALIAS),
            max_rank=engine.limits.max_lora_rank,
            max_bytes=MAX_UPLOAD,
            adapters_dir=adapters,
            observer=telemetry,
        )
        telemetry.watch_states(catalog.counts)
        telemetry.max_loras = engine.limits.max_loras
        generation = Generation(engine, catalog, residency, telemetry)
        versions = {"version": "0.0", "loradock": "0.0", "engine": "echo"}
        app = create_app(Parts(engine, catalog, generation, telemetry, readiness, versions, MAX_UPLOAD))
        await engine.start()
        await catalog.start()
        try:
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
                yield House(engine, catalog, generation, telemetry, readiness, app, client, adapters, root / "state")
        finally:
            await catalog.stop()
            await engine.stop()
