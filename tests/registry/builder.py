"""Registries on the echo engine, one after the other on one state directory, as a restarted service has them."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tiny_model import write_adapter, write_base

from service.adapter.base import Base
from service.engine.echo import EchoEngine
from service.engine.residency import Residency
from service.registry.catalog import Catalog
from service.registry.disk import nothing
from service.registry.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

LIMIT = 1 << 24


def directory() -> TemporaryDirectory[str]:
    """In memory where that can be had: thousands of small files are synced, and no test pulls the plug."""
    memory = "/dev/shm"  # noqa: S108 (the directory made there has a name nobody can guess)
    return TemporaryDirectory(prefix="loradock-", dir=memory if os.access(memory, os.W_OK) else None)


def make_base(path: Path, **changed: Any) -> Base:
    """The tiny base; `changed` are fields of its configuration."""
    config = write_base(path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    return Base.read(path)


def engine_with(**limits: Any) -> EchoEngine:
    """An echo engine whose limits differ in these."""
    return EchoEngine(replace(EchoEngine().limits, **limits))


@dataclass
class House:
    """A running registry and what it is made of."""

    catalog: Catalog
    engine: EchoEngine
    residency: Residency
    store: Store


class Builder:
    """Starts registries on one state directory, one after the other, as a restarted service would."""

    def __init__(self, root: Path, base: Base) -> None:
        self.state = root / "state"
        self.adapters = root / "adapters"
        self.adapters.mkdir(exist_ok=True)
        self.base = base
        self.source = root / "sources"

    def adapter(self, seed: int = 0, **changed: Any) -> Path:
        """A directory outside the adapters directory, made once for each seed."""
        return write_adapter(self.source / f"{seed}{''.join(changed)}", seed, **changed)

    @asynccontextmanager
    async def open(
        self,
        *,
        step: Callable[[str], None] = nothing,
        engine: EchoEngine | None = None,
        base: Base | None = None,
        **settings: Any,
    ) -> AsyncIterator[House]:
        engine = engine or EchoEngine()
        await engine.start()
        with Store.open(self.state, step) as store:
            residency = Residency(engine, engine.limits.max_cpu_loras)
            arguments = {"served": ["base"], "max_rank": 64, "max_bytes": LIMIT, "adapters_dir": self.adapters}
            catalog = Catalog(store, engine, residency, base or self.base, **(arguments | settings))
            await catalog.start()
            try:
                yield House(catalog, engine, residency, store)
            finally:
                await catalog.stop()
        await engine.stop()
