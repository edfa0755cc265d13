"""A base model of two layers, adapters for it of a few kilobytes, and a registry on the echo engine."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from service.adapter.base import Base
from service.engine.echo import EchoEngine
from service.engine.residency import Residency
from service.registry.catalog import Catalog
from service.registry.disk import nothing
from service.registry.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

WIDTH, LAYERS, RANK = 8, 2, 4
MODULES = ("q_proj", "v_proj")
BASE_NAME = "example/tiny"
LIMIT = 1 << 24


def directory() -> TemporaryDirectory[str]:
    """In memory where that can be had: thousands of small files are synced, and no test pulls the plug."""
    memory = "/dev/shm"  # noqa: S108 (the directory made there has a name nobody can guess)
    return TemporaryDirectory(prefix="loradock-", dir=memory if os.access(memory, os.W_OK) else None)


def make_base(path: Path, name: str = BASE_NAME, **changed: Any) -> Base:
    path.mkdir(parents=True)
    config = {
        "_name_or_path": name,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "vocab_size": 16,
        "eos_token_id": 1,
        "max_position_embeddings": 128,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config | changed))
    random = np.random.default_rng(0)
    tensors = {
        f"model.layers.{layer}.self_attn.{module}.weight": random.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        for layer in range(LAYERS)
        for module in MODULES
    }
    tensors["model.embed_tokens.weight"] = random.normal(size=(16, WIDTH)).astype(np.float32)
    save_file(tensors, path / "model.safetensors")
    return Base.read(path)


def make_adapter(path: Path, seed: int = 0, *, base: str = BASE_NAME, rank: int = RANK, **changed: Any) -> Path:
    """An adapter directory as PEFT leaves it. Another seed is another content."""
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(MODULES),
        "bias": "none",
    }
    (path / "adapter_config.json").write_text(json.dumps(config | changed))
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module in MODULES:
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{stem}.lora_A.weight"] = random.normal(size=(rank, WIDTH)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = 0.01 * random.normal(size=(WIDTH, rank)).astype(np.float32)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


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
        return make_adapter(self.source / f"{seed}{''.join(changed)}", seed, **changed)

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
