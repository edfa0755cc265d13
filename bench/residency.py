"""Requests, aborts, evictions and pins in any order on the real engine: never dead, never the wrong adapter.

    python bench/residency.py --base .base/demo --adapters adapters --operations 500

Eight adapters share an engine with two slots and room for four. Each answer's log-probabilities have to be those of the
adapter that was asked, by far the nearest of all; and whenever nothing runs, where we say an adapter sits is where the
engine has it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from service.adapter.base import Base
from service.cli.machine import look
from service.cli.serve import build_engine, size
from service.engine.port import Call, EngineAdapter
from service.engine.residency import Residency
from service.engine.sizing import Known
from service.errors import NoCapacity
from service.serving.admission import Gate
from service.serving.budget import Limits
from service.settings import Settings
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from service.engine.port import Engine

SLOTS, SEATS = 2, 4
PROMPT = "<|im_start|>user\nWhat do cows drink?<|im_end|>\n<|im_start|>assistant\nMilk, of course, as everybody knows."
STRENGTHS = (1.0, 0.75, 0.5, 0.25)
AT_ONCE = 6
ROUND = 25
"""Operations between two looks at where everybody sits."""
WEIGHTS = "adapter_model.safetensors"


@dataclass
class Trial:
    """One run of random operations."""

    engine: Engine
    residency: Residency
    adapters: list[EngineAdapter]
    choose: random.Random
    alone: dict[str, np.ndarray] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def ask(self, adapter: EngineAdapter) -> np.ndarray:
        """Log-probabilities of a prompt's tokens, which no batch's rounding can send another way."""
        (request_type,) = (known.request_type for known in self.engine.operations if known.name == "completions")
        body = request_type(prompt=PROMPT, max_tokens=1, temperature=0, logprobs=1, echo=True, model="base")
        await self.residency.hold(adapter)
        try:
            reply = await self.engine.run("completions", Call(body, adapter))
        finally:
            self.residency.release(adapter)
        return np.array(reply.body["choices"][0]["logprobs"]["token_logprobs"][1:-1])

    async def request(self, adapter: EngineAdapter) -> None:
        """Ask, and see that this adapter answered."""
        spoken = await self.ask(adapter)
        far = {name: distance(alone, spoken) for name, alone in self.alone.items()}
        nearest = min(far, key=far.__getitem__)
        if nearest != adapter.name:
            self.wrong.append(
                f"{adapter.name} was asked ({far[adapter.name]:.3f}), {nearest} spoke ({far[nearest]:.3f})"
            )

    async def abort(self, adapter: EngineAdapter) -> None:
        """Ask, and leave after a moment."""
        asking = asyncio.create_task(self.ask(adapter))
        await asyncio.sleep(self.choose.uniform(0, 0.3))
        asking.cancel()
        await asyncio.wait([asking])
        # What vLLM makes of a cancellation is another room's subject.
        asking.cancelled() or asking.exception()

    async def evict(self, adapter: EngineAdapter) -> None:
        await self.residency.retire(adapter.name)

    async def pin(self, adapter: EngineAdapter) -> None:
        with suppress(NoCapacity):
            self.residency.pin(adapter.name)

    async def unpin(self, adapter: EngineAdapter) -> None:
        self.residency.unpin(adapter.name)

    async def run(self, operations: int) -> None:
        """Rounds of operations, some at once; between rounds everybody's place is compared."""
        for adapter in self.adapters:
            self.alone[adapter.name] = await self.ask(adapter)
        kinds = [self.request] * 5 + [self.abort] * 2 + [self.evict, self.pin, self.unpin]
        for _ in range(operations // ROUND):
            at_once = asyncio.Semaphore(AT_ONCE)

            async def one(at_once: asyncio.Semaphore = at_once) -> None:
                operation, adapter = self.choose.choice(kinds), self.choose.choice(self.adapters)
                async with at_once:
                    self.counts[operation.__name__] += 1
                    await operation(adapter)

            await asyncio.gather(*(one() for _ in range(ROUND)))
            await self.compare_places()

    async def compare_places(self) -> None:
        await self.residency.refresh()
        places = await self.engine.resident()
        for adapter in self.adapters:
            said, true = self.residency.where(adapter.name), places.get(adapter.name, "disk")
            if said != true:
                self.wrong.append(f"{adapter.name} is said to be on {said} and is on {true}")
            self.counts[f"on {true}"] += 1


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def make(source: Path, target: Path, strength: float) -> EngineAdapter:
    shutil.copytree(source, target)
    tensors = load_file(source / WEIGHTS)
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key] = (tensors[key].astype(np.float32) * strength).astype(ml_dtypes.bfloat16)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return EngineAdapter(f"{target.name}@1", target, len(tensors) // 2)


async def trial(options: argparse.Namespace, room: Path) -> Trial:
    sizes = ["--max-loras", str(SLOTS), "--max-cpu-loras", str(SEATS)]
    settings = Settings.load(["--model", str(options.base), "--adapters-dir", str(room), *sizes])
    base = Base.open(settings.model)
    sizing = size(look(), settings, base, Known())
    limits = Limits(settings.token_budget, AT_ONCE, SLOTS, settings.admission_patience)
    gate = Gate(limits, settings.max_queued_tokens, Telemetry("base"))
    engine = build_engine(settings, base, "base", sizing, gate)
    await engine.start()
    try:
        gate.size(sequences=engine.limits.max_num_seqs, slots=engine.limits.max_loras)
        adapters = [
            make(options.adapters / name, room / f"{name}-{strength}", strength)
            for name in ("pirate", "robot")
            for strength in STRENGTHS
        ]
        random_order = random.Random(options.seed)
        one = Trial(engine, Residency(engine, engine.limits.max_cpu_loras), adapters, random_order)
        await one.run(options.operations)
        await engine.check()
    finally:
        await engine.stop()
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--operations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        one = asyncio.run(trial(options, Path(room)))
    print(", ".join(f"{kind} {count}" for kind, count in sorted(one.counts.items())))
    print(f"{options.operations} operations, {len(one.wrong)} wrong")
    for line in one.wrong[:10]:
        print("  ", line)


if __name__ == "__main__":
    main()
