"""One adapter floods, the others ask now and then: how long do the quiet ones wait for their first token?

    python bench/flood.py --base .base/demo --adapter adapters/pirate [--against-stock]

First the quiet ones beside the same flood on the base (nobody competes for adapter slots), then beside a flood on one
adapter, on loradock and, if asked, on vLLM's own server; all in one run, as ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

import openai
from servers import loradock, make_adapters, stock

PROMPT = "Tell me a story about the sea. " * 4


async def first_token(client: openai.AsyncOpenAI, model: str, max_tokens: int) -> float:
    """Seconds until the first token of one streamed answer, which is read to its end."""
    began, first = time.perf_counter(), 0.0
    stream = await client.completions.create(
        model=model,
        prompt=f"{random.random()} {PROMPT}",
        max_tokens=max_tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        first = first or time.perf_counter() - began
    return first


async def measure(url: str, flood: str, quiet: list[str], clients: int, rounds: int) -> list[float]:
    """Waits of the quiet ones, each asking `rounds` times, while `clients` closed loops flood one model."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    flooding = [asyncio.create_task(_for_ever(client, flood)) for _ in range(clients)]
    await asyncio.sleep(5)
    waits: list[float] = []
    for _ in range(rounds):
        waits += [await first_token(client, name, 4) for name in random.sample(quiet, len(quiet))]
    for task in flooding:
        task.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)
    return waits


async def _for_ever(client: openai.AsyncOpenAI, model: str) -> None:
    while True:
        await first_token(client, model, 48)


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against-stock", action="store_true")
    options = parser.parse_args()
    random.seed(7)
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        names = make_adapters(options.adapter, room / "adapters", options.adapters)
        slots = ("--max-loras", str(options.slots), "--max-cpu-loras", str(2 * options.slots))

        def run(url: str, flood: str) -> tuple[float, float]:
            waits = asyncio.run(measure(url, flood, names[1:], options.clients, options.rounds))
            return statistics.median(waits), percentile(waits, 0.95)

        rows = []
        with loradock(options.base, room / "adapters", room, *slots) as url:
            alone = run(url, "base")
            rows.append(("loradock, flood on the base", *alone))
            rows.append(("loradock, flood on one adapter", *run(url, names[0])))
        if options.against_stock:
            ranks = ("--max-lora-rank", "64")
            with stock(options.base, room / "adapters", names, room, *slots, *ranks) as url:
                rows.append(("vLLM's server, flood on the base", *run(url, "base")))
                rows.append(("vLLM's server, flood on one adapter", *run(url, names[0])))
    print(f"{options.adapters} adapters, {options.slots} slots, {options.clients} flooding clients")
    print("| | median s | p95 s | p95 against loradock beside the base |\n| --- | --- | --- | --- |")
    for what, median, high in rows:
        print(f"| {what} | {median:.2f} | {high:.2f} | {high / alone[1]:.2f} |")


if __name__ == "__main__":
    main()
