"""What the engine is made for, read from references and configurations alone."""

from __future__ import annotations

import json

import pytest

from service.engine.sizing import Known
from service.registry.outlook import outlook

pytestmark = pytest.mark.anyio


def claim(directory, **fields):
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(fields))


async def test_what_is_registered_and_what_lies_there(builder):
    async with builder.open() as house:
        for name in ("pirate", "robot"):
            await house.catalog.publish(name, builder.adapter(1))
        await house.catalog.remove("robot")
        refs = house.store.read().refs
    claim(builder.adapters / "pirate", r=256)
    claim(builder.adapters / "robot", r=256)
    assert outlook(refs, builder.adapters) == Known(1, 4, 0)
    claim(builder.adapters / "new", r=8, rank_pattern={"q_proj": 100, "v_proj": True})
    assert outlook(refs, builder.adapters) == Known(2, 4, 100)


def test_what_cannot_be_read_claims_nothing(tmp_path):
    claim(tmp_path / ".incoming", r=512)
    claim(tmp_path / "odd", r="many", rank_pattern=[1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    assert outlook({}, tmp_path) == Known(1, 0, 0)
    assert outlook({}, tmp_path / "nowhere") == Known()
    assert outlook({}, None) == Known()
