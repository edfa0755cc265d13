"""kill -9 at any moment, again and again, on one and the same state directory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from builder import Builder, directory, make_base
from tiny_model import write_adapter
from victim import KEEP, SEEDS

from service.registry.refs import Ref, decode
from service.registry.store import Store

if TYPE_CHECKING:
    from service.adapter.base import Base

KILLS = 6
VICTIM = Path(__file__).with_name("victim.py")


def weights_of(path: Path) -> str:
    return hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()


def kill_after(root: Path, seed: int, seconds: float) -> list[str]:
    """What the victim said, up to the last whole line, when it was killed so long after it had started."""
    command = [sys.executable, str(VICTIM), str(root), str(seed)]
    helpers = os.pathsep.join(map(str, [VICTIM.parent, VICTIM.parents[1]]))
    environment = os.environ | {"PYTHONPATH": helpers}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as victim:
        assert victim.stdout
        first = victim.stdout.readline()
        threading.Timer(seconds, victim.kill).start()
        said = first + victim.stdout.read()
    return said[: said.rindex("\n")].splitlines()


def refs(line: str) -> dict[str, Ref]:
    return {name: decode(json.dumps(ref).encode()) for name, ref in json.loads(line.removeprefix("done ")).items()}


def became(before: Ref, after: Ref, work: dict[str, object], digests: dict[int, str]) -> bool:
    """Whether `after` is what the work should make of `before`."""
    match work["work"]:
        case "remove":
            return after.removed is not None and not after.versions
        case "rollback":
            return after == before.rollback()
    expected = digests[work["seed"]]  # type: ignore[index]
    kept = {version.number for version in before.versions[-(KEEP - 1) :]}
    return (
        after.current is not None
        and after.current.digest == expected
        and after.previous in (before.active, None)
        and kept <= {version.number for version in after.versions}
    )


def prepare(root: Path, base: Base) -> tuple[dict[int, str], dict[str, str]]:
    """Every adapter the victim may publish: seed → digest, and digest → what the engine should read."""

    async def publish() -> dict[int, Path]:
        (root / "reference").mkdir()
        paths = {}
        async with Builder(root / "reference", base).open() as house:
            for seed in SEEDS:
                await house.catalog.publish("pirate", write_adapter(root / "sources" / str(seed), seed))
                paths[seed] = house.catalog.lease("pirate").adapter.path
        return paths

    paths = asyncio.run(publish())
    found = decode((root / "reference" / "state" / "refs" / "pirate.json").read_bytes())
    digests = {seed: version.digest for seed, version in zip(SEEDS, found.versions, strict=True)}
    return digests, {digests[seed]: weights_of(path) for seed, path in paths.items()}


def test_whenever_it_is_killed_nothing_is_lost_and_nothing_is_half():
    choice = random.Random(7)
    with directory() as place:
        root = Path(place)
        base = make_base(root / "base")
        digests, weights = prepare(root, base)
        for round_ in range(KILLS):
            lines = kill_after(root, round_, choice.uniform(0, 0.2))
            before = refs(next(line for line in reversed(lines) if line.startswith("done ")))
            begun = json.loads(lines[-1].removeprefix("begin ")) if lines[-1].startswith("begin ") else None
            store = Store(root / "state")
            found = store.read()
            assert not found.damaged
            assert not store.missing(found.refs)
            for name in {*before, *found.refs}:
                old, new = before.get(name, Ref(name)), found.refs.get(name, Ref(name))
                same = (old.versions, old.active) == (new.versions, new.active)
                assert same or (begun and begun["name"] == name and became(old, new, begun, digests)), (old, new, begun)
                for version in new.versions:
                    assert weights_of(store.path(name, version.number, version.digest)) == weights[version.digest]
