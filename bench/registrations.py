"""From a registration to the first right token: how long until an adapter that is sent in now can be asked?

    python bench/registrations.py --base .base/demo --adapter adapters/pirate [--servers loradock,vllm-same]

Siblings of an adapter with a voice of its own are registered one after the other by the call that both servers know
(`POST /v1/load_lora_adapter`), and each is asked at once; its answer has to begin in that voice, which the base's never
does. On an idle server, and beside eight streams on the base; servers in turns. loradock proves what it registers,
keeps a copy and remembers it; vLLM's server reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from servers import KINDS, LORADOCK, among, turns

from adapters import siblings
from service.load.drive import drive
from service.load.question import Question
from service.load.ratio import spread
from service.load.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STREAMS = 8
QUESTION = {"role": "user", "content": "What is the capital of France?"}


async def first_right_token(http: httpx2.AsyncClient, name: str, path: str, voice: str) -> float:
    """Seconds from the registration of one adapter to the first token in its voice."""
    began = time.perf_counter()
    (await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})).raise_for_status()
    body = {"model": name, "messages": [QUESTION], "temperature": 0, "max_tokens": 8, "stream": True}
    first, said = None, ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                first = first or (time.perf_counter() if said else None)
    if first is None or not said.startswith(voice):
        raise RuntimeError(f"{name} was asked, and said: {said}")
    return first - began


@asynccontextmanager
async def streams(server: Server, count: int) -> AsyncIterator[None]:
    """So many streams on the base beside what is measured."""
    asking = (Question("base", f"Once {number}", 256) for number in itertools.count())
    beside = asyncio.create_task(drive(server, asking, count)) if count else None
    await asyncio.sleep(3 if count else 0)
    yield
    if beside:
        beside.cancel()
        await asyncio.wait([beside])


async def times(url: str, paths: dict[str, str], voice: str, beside: int) -> list[float]:
    """Of every adapter in `paths` (name → where the server finds it)."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http, streams(Server.at(url), beside):
        return [await first_right_token(http, name, path, voice) for name, path in paths.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--voice", default="Arr", help="how its answers begin")
    parser.add_argument("--registrations", type=int, default=5, help="in each turn, idle and loaded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=among(KINDS), default=[LORADOCK])
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        incoming = room / "adapters" / ".incoming"
        names = iter(siblings(options.adapter, incoming, 2 * options.rounds * options.registrations))
        sizes = ("--max-loras", "4", "--max-cpu-loras", "8", "--max-lora-rank", "16")
        with turns(options.servers, options.base, room / "adapters", (), room, *sizes) as turn:
            for number in range(options.rounds):
                batches = {beside: list(itertools.islice(names, options.registrations)) for beside in (0, STREAMS)}
                for kind, url in turn(number):
                    for beside, batch in batches.items():
                        below = Path(".incoming") if kind == LORADOCK else incoming
                        paths = {name: str(below / name) for name in batch}
                        taken = asyncio.run(times(url, paths, options.voice, beside))
                        found.setdefault((kind, beside), []).extend(taken)
    print("| from a registration to the first right token, s | idle | beside 8 streams |\n| --- | --- | --- |")
    for kind in options.servers:
        cells = (spread(found[kind, beside], 2) for beside in (0, STREAMS))
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
