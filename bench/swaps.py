"""Swaps under load: does anybody notice when an adapter is replaced, and how long does a registration take?

    python bench/swaps.py --base .base/demo --adapters adapters --swaps 50

Two adapters with different voices take turns under one name, while eight clients ask that name without a pause, half
of them streaming, all behind a long shared prefix. Every answer has to be in one voice, and in the voice of the version
its header names; after a registration's answer nobody may hear the old version.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from servers import loradock

CLIENTS = 8
PREFIX = "You are on a long voyage and have much time to talk. " * 20


@dataclass
class Ledger:
    """What was seen."""

    answers: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    active: int = 0
    """The version that the last registration's answer named."""
    voices: dict[int, str] = field(default_factory=dict)
    """Version → the word its answers carry."""


def spoken_in(raw: str, *, stream: bool) -> str:
    """What was said, in lower case, whole or streamed."""
    if not stream:
        return str(json.loads(raw)["choices"][0]["message"]["content"]).lower() if '"choices"' in raw else ""
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    return "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")
    ).lower()


async def ask(client: httpx2.AsyncClient, ledger: Ledger, number: int, *, stream: bool) -> None:
    oldest = ledger.active
    question = {"role": "user", "content": f"{PREFIX} What is {number} plus one?"}
    body = {"model": "swapped", "messages": [question], "temperature": 0, "max_tokens": 16, "stream": stream}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        raw = (await answer.aread()).decode()
    ledger.answers += 1
    text = spoken_in(raw, stream=stream)
    if answer.status_code != httpx2.codes.OK or '"error"' in raw:
        ledger.failed.append(raw[:200])
        return
    version = int(answer.headers["X-Loradock-Adapter"].partition("@")[2].partition(" ")[0])
    others = set(ledger.voices.values()) - {ledger.voices[version]}
    if any(word in text for word in others):
        ledger.mixed.append(f"@{version}: {text[-300:]}")
    if version < oldest:
        ledger.late.append(f"@{version} after @{oldest}")


async def run(url: str, sources: dict[str, Path], incoming: Path, swaps: int) -> tuple[Ledger, list[float]]:
    ledger, seconds = Ledger(), []
    words = list(sources)
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:

        async def register(number: int) -> None:
            word = words[number % len(words)]
            ledger.voices[number + 1] = word
            began = time.perf_counter()
            answer = await client.post("/adapters", json={"name": "swapped", "path": f".incoming/{word}"})
            seconds.append(time.perf_counter() - began)
            if answer.status_code != httpx2.codes.CREATED:
                raise RuntimeError(answer.text)
            ledger.active = answer.json()["active"]

        async def client_loop(lane: int) -> None:
            number = lane
            while not ended.is_set():
                await ask(client, ledger, number, stream=lane % 2 == 0)
                number += CLIENTS

        for word, source in sources.items():
            shutil.copytree(source, incoming / word)
        ended = asyncio.Event()
        await register(0)
        clients = [asyncio.create_task(client_loop(lane)) for lane in range(CLIENTS)]
        for number in range(1, swaps + 1):
            await register(number)
        ended.set()
        await asyncio.gather(*clients)
    return ledger, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--swaps", type=int, default=50)
    options = parser.parse_args()
    sources = {"matey": options.adapters / "pirate", "beep": options.adapters / "robot"}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        (room / "adapters" / ".incoming").mkdir(parents=True)
        with loradock(options.base, room / "adapters", room) as url:
            ledger, seconds = asyncio.run(run(url, sources, room / "adapters" / ".incoming", options.swaps))
    print(f"{options.swaps} swaps under {CLIENTS} clients, {ledger.answers} answers")
    print(f"failed {len(ledger.failed)}, mixed {len(ledger.mixed)}, by the old version afterwards {len(ledger.late)}")
    for example in [*ledger.failed[:3], *ledger.mixed[:3], *ledger.late[:3]]:
        print("  ", example)
    print(f"a registration under this load: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
