"""Cold loads beside steady streams: how much longer is the gap between two tokens while adapters are brought in?

    python bench/cold_loads.py --base .base/demo [--against-stock]

Four streams on the base; adapters of rank 64 on all projections (78 MB in 32 bit) are asked for one after the other,
more of them than the engine holds, so that each is a cold load. The gaps against those beside the same requests to
adapters that are resident, and against those of the streams alone, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openai
from safetensors.numpy import save_file
from servers import loradock, stock

from service.adapter.base import Base

RANK = 64
STREAMS = 4
RESIDENT = 4
"""As many as there are slots."""


def make_large(base: Path, target: Path, count: int) -> list[str]:
    """Random adapters of rank 64 on every projection, in 32 bit, weak enough to be accepted."""
    modules = {path: shape for path, shape in Base.open(str(base)).modules.items() if "layers" in path}
    generator = np.random.default_rng(7)
    names = []
    for number in range(count):
        directory = target / f"large{number}"
        directory.mkdir(parents=True)
        tensors = {}
        for path, (outputs, inputs) in modules.items():
            key = f"base_model.model.{path}"
            tensors[f"{key}.lora_A.weight"] = generator.normal(0, 0.02, (RANK, inputs)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = generator.normal(0, 0.002, (outputs, RANK)).astype(np.float32)
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        targets = sorted({path.rpartition(".")[2] for path in modules})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": targets,
        }
        (directory / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
        names.append(directory.name)
    return names


async def gaps(url: str, cold: list[str], seconds: float) -> list[float]:
    """Gaps between tokens of the steady streams, while the cold ones are asked for in turn."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:
        return await _gaps(client, cold, seconds)


async def _gaps(client: openai.AsyncOpenAI, cold: list[str], seconds: float) -> list[float]:
    found: list[float] = []
    ended = asyncio.Event()

    async def steady() -> None:
        while not ended.is_set():
            stream = await client.completions.create(
                model="base", prompt="Once", max_tokens=256, stream=True, extra_body={"ignore_eos": True}
            )
            last = None
            async for _ in stream:
                now = time.perf_counter()
                if last is not None:
                    found.append(now - last)
                last = now
                if ended.is_set():
                    await stream.close()
                    break

    streams = [asyncio.create_task(steady()) for _ in range(STREAMS)]
    await asyncio.sleep(3)
    found.clear()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name in cold:
            await client.completions.create(model=name, prompt="Hi", max_tokens=1)
            await asyncio.sleep(0.5)
        if not cold:
            await asyncio.sleep(0.5)
    ended.set()
    await asyncio.gather(*streams)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--against-stock", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        names = make_large(options.base, room / "adapters", options.adapters)
        sizes = ("--max-loras", str(RESIDENT), "--max-cpu-loras", "8", "--max-lora-rank", str(RANK))
        rows = []

        def run(who: str, url: str) -> None:
            quiet = asyncio.run(gaps(url, [], options.seconds))
            resident = asyncio.run(gaps(url, names[:RESIDENT], options.seconds))
            loading = asyncio.run(gaps(url, names, options.seconds))
            rows.append((who, _p99(quiet), _p99(resident), _p99(loading), max(loading)))

        with loradock(options.base, room / "adapters", room, *sizes) as url:
            run("loradock", url)
        if options.against_stock:
            with stock(options.base, room / "adapters", names, room, *sizes) as url:
                run("vLLM's server", url)
    print("p99 gap between tokens, s")
    print(
        "| | streams alone | requests to resident adapters | requests that load | ratio to these | to alone | longest |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for who, quiet, resident, loading, longest in rows:
        ratios = f"{loading / resident:.2f} | {loading / quiet:.2f}"
        print(f"| {who} | {quiet:.3f} | {resident:.3f} | {loading:.3f} | {ratios} | {longest:.3f} |")


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
