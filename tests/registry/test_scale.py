"""Two thousand adapters: a start reads references, and one more costs what it costs among ten."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from service.registry.refs import Offer, decode, encode
from service.registry.stamp import stamp_of
from service.registry.store import _file
from service.registry.watch import Watcher

pytestmark = pytest.mark.anyio

MANY = 2000
START = 2.0
"""Seconds by which so many may delay readiness, the scan of their directories included."""


async def fill(builder) -> None:
    """One adapter published, and its files multiplied under other names, each offered by a directory."""
    async with builder.open() as house:
        await house.catalog.publish("model-0000", builder.adapter(1))
        path = house.catalog.lease("model-0000").adapter.path
    refs = builder.state / "refs"
    ref = decode((refs / "model-0000.json").read_bytes())
    for number in range(MANY):
        name = f"model-{number:04}"
        offering = builder.adapters / name
        shutil.copytree(builder.adapter(1), offering)
        if number:
            shutil.copytree(path, builder.state / "adapters" / _file(name) / path.name)
        offers = {str(offering): Offer(ref.versions[0].digest, stamp_of(offering))}
        (refs / f"{_file(name)}.json").write_bytes(encode(replace(ref, name=name, offers=offers)))


async def test_two_thousand_adapters_delay_nothing(builder):
    await fill(builder)
    began = time.perf_counter()
    async with builder.open() as house:
        watcher = Watcher(house.catalog, builder.adapters, watch=False)
        await watcher.start()
        await watcher.scanned.wait()
        started = time.perf_counter() - began
        assert house.catalog.counts() == {"ready": MANY, "loading": 0, "draining": 0, "failed": 0}
        assert not house.engine.loaded, "nothing is loaded before it is asked for"
        began = time.perf_counter()
        assert len(house.catalog.records()) == MANY
        listed = time.perf_counter() - began
        began = time.perf_counter()
        await house.catalog.publish("one-more", builder.adapter(2))
        published = time.perf_counter() - began
        await watcher.stop()
    assert started < START
    assert listed < 1.0
    assert published < 1.0
