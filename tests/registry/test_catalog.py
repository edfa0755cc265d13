"""What is served under which name."""

from __future__ import annotations

import pytest

from service.errors import AdapterNotFound, ModelNotFound

pytestmark = pytest.mark.anyio


async def test_a_published_adapter_is_served_under_its_name(builder):
    async with builder.open() as house:
        publication = await house.catalog.publish("pirate", builder.adapter(1))
        assert publication.created
        assert publication.record["state"] == "ready"
        assert publication.record["active"] == 1
        lease = house.catalog.lease("pirate")
        assert lease.adapter.name == "pirate@1"
        assert lease.label == f"pirate@1 sha256:{publication.record['versions'][0]['digest'][:12]}"
        lease.release()


async def test_what_was_published_is_served_after_a_restart(builder):
    async with builder.open() as house:
        record = (await house.catalog.publish("pirate", builder.adapter(1))).record
    async with builder.open() as house:
        again = house.catalog.record("pirate")
        assert again["state"] == "ready"
        assert again["versions"] == [{**record["versions"][0], "residency": "disk"}]
        lease = house.catalog.lease("pirate")
        await house.residency.hold(lease.adapter)
        house.residency.release(lease.adapter)
        lease.release()


async def test_a_removed_adapter_is_gone_with_its_files(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        await house.catalog.remove("pirate")
        with pytest.raises(AdapterNotFound):
            house.catalog.record("pirate")
        with pytest.raises(ModelNotFound):
            house.catalog.lease("pirate")
        assert not house.engine.loaded
        assert not list((builder.state / "adapters" / "pirate").iterdir())
