"""kill -9 in the middle of publishing, swapping, rolling back and deleting, on the real engine, again and again.

    python bench/kills.py --base .base/demo --adapters adapters --kills 20

After each kill the service is started again on the same directory. What had been answered has to be so, what was being
done may be done or not, and every adapter has to speak in the voice of the content it was given.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from servers import LORADOCK, running

NAMES = ("one", "two", "three")
SECONDS = 6.0
"""A kill comes within so many seconds of work."""


@dataclass
class Ledger:
    """What each name was answered to be: the word its content speaks, or None."""

    words: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(NAMES))
    earlier: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(NAMES))
    """What a rollback of the name would bring."""
    doing: tuple[str, str | None] | None = None
    """A change that was begun and not answered."""
    done: int = 0

    def change(self, name: str, word: str | None) -> None:
        """The change that was begun has been answered."""
        if word != self.words[name]:
            self.earlier[name] = self.words[name] if word else None
        self.words[name] = word
        self.doing = None
        self.done += 1


def work(http: httpx2.Client, ledger: Ledger, choose: random.Random, sources: dict[str, Path]) -> None:
    """One change after the other until the service is gone."""
    while True:
        name = choose.choice(NAMES)
        now, before = ledger.words[name], ledger.earlier[name]
        word = choose.choice([*sources, *([None] if now else []), *([before] if before else [])])
        ledger.doing = (name, word)
        if word is None:
            answer = http.delete(f"/adapters/{name}")
        elif word == before and choose.choice((True, False)):
            answer = http.post(f"/adapters/{name}/rollback", json={})
        else:
            answer = http.post("/adapters", json={"name": name, "path": f".incoming/{word}"})
        answer.raise_for_status()
        ledger.change(name, word)


def check(http: httpx2.Client, ledger: Ledger) -> list[str]:
    """What is wrong after a restart; what is there is what counts from here on."""
    wrong = []
    records = {record["name"]: record for record in http.get("/adapters").json()["adapters"]}
    for name in NAMES:
        expected = {ledger.words[name]} | ({ledger.doing[1]} if ledger.doing and ledger.doing[0] == name else set())
        record = records.get(name)
        found = voice(http, name) if record and record["state"] == "ready" else None
        if found not in expected or (record and record["state"] != "ready"):
            wrong.append(f"{name}: {found} instead of {expected}, {record}")
        ledger.words[name], ledger.earlier[name] = found, None
    ledger.doing = None
    return wrong


def voice(http: httpx2.Client, name: str) -> str:
    question = {"role": "user", "content": "What do cows drink?"}
    body = {"model": name, "messages": [question], "temperature": 0, "max_tokens": 16}
    text = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].lower()
    return next((word for word in ("matey", "beep") if word in text), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    ledger, wrong = Ledger(), []
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        sources = {"matey": room / "adapters/.incoming/matey", "beep": room / "adapters/.incoming/beep"}
        for source, target in zip(("pirate", "robot"), sources.values(), strict=True):
            shutil.copytree(options.adapters / source, target)
        for kill in range(options.kills + 1):
            with (
                running(LORADOCK, options.base, room / "adapters", (), room) as server,
                httpx2.Client(base_url=server.url, timeout=60) as http,
                suppress(httpx2.TransportError),
            ):
                wrong += check(http, ledger)
                if kill < options.kills:
                    threading.Timer(choose.uniform(0.05, SECONDS), server.process.kill).start()
                    work(http, ledger, choose, sources)
    print(f"{options.kills} kills, {ledger.done} changes answered, {len(wrong)} wrong afterwards")
    for line in wrong:
        print("  ", line)


if __name__ == "__main__":
    main()
