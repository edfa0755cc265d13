"""Swaps under load: does anybody notice when an adapter is replaced, and how long does a registration take?

    python bench/swaps.py --base .base/demo --adapters adapters --swaps 50

Two adapters with different voices take turns under one name, while eight clients ask that name without a pause, half
of them streaming, all behind a long shared prefix, and one more listens to long streams that several swaps pass by.
Every answer has to be in one voice, that of the version its header names; after a registration's answer, or a
rollback's, nobody may hear what was replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from servers import loradock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLIENTS = 8
LONG = 200
"""Tokens of a long stream."""
NAME = "swapped"
PREFIX = "You are on a long voyage and have much time to talk. " * 20


@dataclass(frozen=True)
class Heard:
    """One answer."""

    begun: int
    """How many changes had been answered when it was asked for."""
    ended: int
    version: int
    text: str


@dataclass
class Ledger:
    """What was seen."""

    active: list[int] = field(default_factory=list)
    """The version that each change's answer named, in order."""
    voices: dict[int, str] = field(default_factory=dict)
    """Version → the word its answers carry."""
    heard: list[Heard] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def mixed(self) -> list[Heard]:
        """Answers with another version's voice in them."""
        words = set(self.voices.values())
        return [one for one in self.heard if any(word in one.text for word in words - {self.voices[one.version]})]

    def late(self) -> list[Heard]:
        """Answers by a version that was no longer active when they were asked for.

        A change takes effect before its answer arrives, so the one after the last answered counts too.
        """
        return [one for one in self.heard if one.version not in self.active[one.begun - 1 : one.ended + 1]]


def spoken_in(raw: str, *, stream: bool) -> str:
    """What was said, in lower case, whole or streamed."""
    if not stream:
        return str(json.loads(raw)["choices"][0]["message"]["content"]).lower() if '"choices"' in raw else ""
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    return "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")
    ).lower()


async def ask(client: httpx2.AsyncClient, ledger: Ledger, number: int, *, stream: bool, max_tokens: int = 16) -> None:
    begun = len(ledger.active)
    question = {"role": "user", "content": f"{PREFIX} What is {number} plus one?"}
    body = {"model": NAME, "messages": [question], "temperature": 0, "max_tokens": max_tokens, "stream": stream}
    body["ignore_eos"] = max_tokens > LONG // 2
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        raw = (await answer.aread()).decode()
    if answer.status_code != httpx2.codes.OK or '"error"' in raw:
        ledger.failed.append(raw[:200])
        return
    version = int(answer.headers["X-Loradock-Adapter"].partition("@")[2].partition(" ")[0])
    ledger.heard.append(Heard(begun, len(ledger.active), version, spoken_in(raw, stream=stream)))


@asynccontextmanager
async def under_load(client: httpx2.AsyncClient, ledger: Ledger) -> AsyncIterator[None]:
    """Clients that ask without a pause, and one that listens to long streams."""

    async def loop(lane: int, **how: Any) -> None:
        number = lane
        while not ended.is_set():
            await ask(client, ledger, number, **how)
            number += CLIENTS

    ended = asyncio.Event()
    clients = [asyncio.create_task(loop(lane, stream=lane % 2 == 0)) for lane in range(CLIENTS)]
    clients.append(asyncio.create_task(loop(CLIENTS, stream=True, max_tokens=LONG)))
    yield
    ended.set()
    await asyncio.gather(*clients)


async def change(client: httpx2.AsyncClient, ledger: Ledger, path: str, body: dict[str, Any]) -> float:
    """Seconds that a registration or a rollback took."""
    began = time.perf_counter()
    answer = await client.post(path, json=body)
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    ledger.active.append(answer.json()["active"])
    return seconds


async def run(url: str, sources: dict[str, Path], incoming: Path, swaps: int) -> None:
    words = list(sources)
    for word, source in sources.items():
        shutil.copytree(source, incoming / word)
    ledger = Ledger(voices={number + 1: words[number % 2] for number in range(swaps + 1)})
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:

        async def register(number: int) -> float:
            body = {"name": NAME, "path": f".incoming/{words[number % 2]}"}
            return await change(client, ledger, "/adapters", body)

        async def roll_back(number: int) -> float:
            to = ledger.active[-1] - 1 if number % 2 else swaps + 1
            return await change(client, ledger, f"/adapters/{NAME}/rollback", {"version": to})

        await register(0)
        async with under_load(client, ledger):
            seconds = [await register(number) for number in range(1, swaps + 1)]
        report(f"{swaps} swaps", ledger, seconds)
        ledger.heard.clear()
        async with under_load(client, ledger):
            seconds = [await roll_back(number) for number in range(1, swaps + 1)]
        report(f"{swaps} rollbacks and back", ledger, seconds)


def report(what: str, ledger: Ledger, seconds: list[float]) -> None:
    mixed, late = ledger.mixed(), ledger.late()
    passed = max(one.ended - one.begun for one in ledger.heard)
    print(f"{what} under {CLIENTS} clients and long streams: {len(ledger.heard)} answers, {passed} changes during one")
    print(f"  failed {len(ledger.failed)}, mixed {len(mixed)}, by what had been replaced {len(late)}")
    for example in [*ledger.failed[:3], *mixed[:3], *late[:3]]:
        print("   ", example)
    print(f"  one takes {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest)")


def phases(log: str) -> dict[str, float]:
    """Phase → median seconds of all registrations, as the service's own log has them."""
    lines = (json.loads(line) for line in log.splitlines() if '"adapter_published"' in line)
    taken = [line["seconds"] for line in lines if line["adapter"].startswith(NAME)]
    return {phase: statistics.median(one[phase] for one in taken) for phase in taken[0]}


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
            asyncio.run(run(url, sources, room / "adapters" / ".incoming", options.swaps))
        taken = phases((room / "loradock.log").read_text())
    print("a registration's parts, median s: " + ", ".join(f"{phase} {part:.3f}" for phase, part in taken.items()))


if __name__ == "__main__":
    main()
