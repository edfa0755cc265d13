"""Tokens a second of sixteen streams, on the base and on four adapters, beside vLLM's own server.

python bench/throughput.py --base .base/demo --adapter adapters/pirate [--against-stock]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import openai
from servers import loradock, make_adapters, stock

STREAMS = 16
TOKENS = 64
ADAPTERS = 4
PROMPT = "Tell me a story about the sea."


async def tokens_a_second(url: str, models: list[str], rounds: int) -> float:
    """Median over rounds, after one that isn't counted."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:

        async def stream(number: int) -> None:
            answer = await client.completions.create(
                model=models[number % len(models)],
                prompt=f"{number}: {PROMPT}",
                max_tokens=TOKENS,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for _ in answer:
                pass

        rates = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            await asyncio.gather(*(stream(number) for number in range(STREAMS)))
            rates.append(STREAMS * TOKENS / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against-stock", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        names = make_adapters(options.adapter, room / "adapters", ADAPTERS)
        sizes = ("--max-loras", str(ADAPTERS), "--max-lora-rank", "64")
        rows = []

        def run(who: str, url: str) -> None:
            rates = [asyncio.run(tokens_a_second(url, models, options.rounds)) for models in (["base"], names)]
            rows.append((who, *rates))

        with loradock(options.base, room / "adapters", room, *sizes) as url:
            run("loradock", url)
        if options.against_stock:
            with stock(options.base, room / "adapters", names, room, *sizes) as url:
                run("vLLM's server", url)
    print(f"tokens a second, {STREAMS} streams\n| | base | {ADAPTERS} adapters |\n| --- | --- | --- |")
    for who, base, adapters in rows:
        print(f"| {who} | {base:.0f} | {adapters:.0f} |")


if __name__ == "__main__":
    main()
