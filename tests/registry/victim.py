"""A registry in a process of its own that publishes, swaps, rolls back and removes until it is killed.

Prints `begin {"name", "work", "seed"}` before each piece of work and `done {name: reference}` after it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from contextlib import suppress
from pathlib import Path

import structlog
from builder import Builder

from service.adapter.base import Base
from service.errors import LoradockError
from service.registry.refs import encode

NAMES = ("pirate", "cow", "Zebra")
SEEDS = range(4)
KEEP = 3


def say(word: str, what: object) -> None:
    sys.stdout.write(f"{word} {json.dumps(what)}\n")
    sys.stdout.flush()


async def main(root: Path, seed: int) -> None:
    choice = random.Random(seed)
    async with Builder(root, Base.read(root / "base")).open(keep_versions=KEEP) as house:
        work = {
            "publish": house.catalog.publish,
            "rollback": lambda name, _: house.catalog.rollback(name),
            "remove": lambda name, _: house.catalog.remove(name),
        }

        def state() -> dict[str, object]:
            return {name: json.loads(encode(entry.ref)) for name, entry in house.catalog._entries.items()}

        say("done", state())
        while True:
            kind = choice.choices(list(work), [6, 2, 1])[0]
            name, number = choice.choice(NAMES), choice.choice(SEEDS)
            say("begin", {"name": name, "work": kind, "seed": number})
            with suppress(LoradockError):
                await work[kind](name, root / "sources" / str(number))
            say("done", state())


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
