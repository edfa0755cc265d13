"""One adapter floods, the others ask now and then: how long do the quiet ones wait for their first token?

    python bench/flood.py --base .base/demo --adapter adapters/pirate [--servers loradock,vllm-same]

First the quiet ones beside the same flood on the base (nobody competes for adapter slots), then beside a flood on one
adapter; the servers in turns, all in one run, as ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from servers import KINDS, LORADOCK, among, turns

from adapters import siblings
from service.load.answer import read
from service.load.drive import drive
from service.load.exchange import exchange
from service.load.question import Question
from service.load.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "Tell me a story about the sea. " * 4
PATIENCE = 600.0


def question(model: str, max_tokens: int) -> Question:
    return Question(model, f"{random.random()} {PROMPT}", max_tokens)


async def waits(server: Server, flood: str, quiet: list[str], clients: int, rounds: int) -> list[float]:
    """Waits of the quiet ones, each asking `rounds` times, while `clients` closed loops flood one model."""
    flooding = asyncio.create_task(drive(server, _endless(flood), clients))
    await asyncio.sleep(5)
    found = []
    for name in itertools.chain.from_iterable(random.sample(quiet, len(quiet)) for _ in range(rounds)):
        answer = read(await exchange(server, question(name, 4), PATIENCE))
        if answer.failure:
            raise RuntimeError(answer.failure)
        found.append(answer.arrivals[0] - answer.began)
    flooding.cancel()
    await asyncio.wait([flooding])
    return found


def _endless(model: str) -> Iterator[Question]:
    while True:
        yield question(model, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--servers", type=among(KINDS), default=[LORADOCK])
    options = parser.parse_args()
    random.seed(7)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        names = siblings(options.adapter, room / "adapters", options.adapters)
        sizes = ("--max-loras", str(options.slots), "--max-cpu-loras", str(2 * options.slots), "--max-lora-rank", "64")
        with turns(options.servers, options.base, room / "adapters", names, room, *sizes) as measured:
            for kind, url in measured(0):
                for what, flood in (("the base", "base"), ("one adapter", names[0])):
                    found = asyncio.run(waits(Server.at(url), flood, names[1:], options.clients, options.rounds))
                    median, high = (float(value) for value in np.percentile(found, (50, 95)))
                    rows.append((f"{kind}, flood on {what}", median, high))
    print(f"{options.adapters} adapters, {options.slots} slots, {options.clients} flooding clients")
    print("| | median s | p95 s | p95 against the first line |\n| --- | --- | --- | --- |")
    for what, median, high in rows:
        print(f"| {what} | {median:.2f} | {high:.2f} | {high / rows[0][2]:.2f} |")


if __name__ == "__main__":
    main()
