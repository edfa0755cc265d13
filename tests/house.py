"""The whole service but for the real engine: the echo engine, and everything else as it is in production."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import uvicorn

from service.api.app import Parts, create_app
from service.api.operations import Readiness
from service.engine.echo import EchoEngine
from service.engine.residency import Residency
from service.registry.catalog import Catalog
from service.registry.store import Store
from service.serving.generation import Generation
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
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


class Listening(uvicorn.Server):
    """A server that says when it listens, and where."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_config=None, access_log=False))
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.up.set()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"


@contextmanager
def serving(base: Base, root: Path) -> Iterator[str]:
    """The URL of a service that runs in a thread of its own, behind a real socket."""
    servers: list[Listening] = []
    built = threading.Event()

    async def serve() -> None:
        async with build(base, root) as house:
            servers.append(Listening(house.app))
            built.set()
            await servers[0].serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert built.wait(20)
        assert servers[0].up.wait(20)
        yield servers[0].url
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(20)
