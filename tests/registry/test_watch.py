"""The adapters directory: scanned at start, watched afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from builder import make_base
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_adapter

from service.adapter.base import Base
from service.errors import StoreUnavailable
from service.registry.filesystem import is_remote
from service.registry.settling import PATIENCE, Settling
from service.registry.stamp import stamp_of
from service.registry.watch import Watcher

pytestmark = pytest.mark.anyio
SETTLE = 0.05


async def once(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(builder, *, settle=SETTLE, polling=None, watch=True, lax=(), retire=False, **settings):
    """A registry with a watcher whose first scan is done."""
    async with builder.open(**settings) as house:
        watcher = Watcher(
            house.catalog,
            builder.adapters,
            watch=watch,
            settle=settle,
            polling=polling,
            allow_base_mismatch=lax,
            retire=retire,
        )
        await watcher.start()
        await watcher.scanned.wait()
        try:
            yield house
        finally:
            await watcher.stop()


def standing(house):
    return {record["name"]: (record["state"], record["active"]) for record in house.catalog.records()}


def codes(house, name):
    return [problem["code"] for problem in house.catalog.record(name)["problems"]]


async def test_what_is_sound_is_served_and_what_is_not_is_listed(builder):
    write_adapter(builder.adapters / "sound", 1)
    write_adapter(builder.adapters / ".incoming" / "later", 1)
    write_adapter(builder.adapters / "not a name", 1)
    write_adapter(builder.adapters / "base", 1)
    (builder.adapters / "empty").mkdir()
    (builder.adapters / "README.md").touch()
    torn = write_adapter(builder.adapters / "torn", 1) / "adapter_model.safetensors"
    os.truncate(torn, torn.stat().st_size - 1)
    async with watched(builder, watch=False) as house:
        assert standing(house) == {
            "sound": ("ready", 1),
            "not a name": ("failed", None),
            "base": ("failed", None),
            "empty": ("failed", None),
            "torn": ("failed", None),
        }
        assert codes(house, "not a name") == ["name_invalid"]
        assert codes(house, "base") == ["name_taken"]
        assert codes(house, "empty") == ["config_missing", "weights_missing"]
        assert codes(house, "torn") == ["weights_incomplete"]
        assert house.catalog.record("sound")["source"] == "sound"
        assert house.catalog.counts()["failed"] == 4


@pytest.mark.parametrize("polling", [False, True])
async def test_what_is_dropped_in_is_served_and_what_changes_is_a_new_version(builder, polling, monkeypatch):
    monkeypatch.setattr("service.registry.watch.POLL", 0.05)
    async with watched(builder, polling=polling) as house:
        write_adapter(builder.adapters / "pirate", 1)
        await once(lambda: standing(house).get("pirate") == ("ready", 1))
        write_adapter(builder.adapters / "pirate", 2)
        await once(lambda: standing(house)["pirate"] == ("ready", 2))


async def test_a_copy_in_progress_waits_until_it_is_whole(builder):
    source = builder.adapter(1)
    weights = (source / "adapter_model.safetensors").read_bytes()
    async with watched(builder, settle=0.3) as house:
        target = builder.adapters / "pirate"
        target.mkdir()
        shutil.copy(source / "adapter_config.json", target)
        with (target / "adapter_model.safetensors").open("wb") as file:
            for start in range(0, len(weights), len(weights) // 8):
                file.write(weights[start : start + len(weights) // 8])
                file.flush()
                await asyncio.sleep(0.1)  # a slow copy is the subject here
                assert "pirate" not in standing(house)
        await once(lambda: standing(house).get("pirate") == ("ready", 1))
        assert house.catalog.record("pirate")["last_failure"] is None


async def test_a_copy_that_never_ends_is_listed_at_last(builder):
    async with watched(builder) as house:
        torn = write_adapter(builder.adapters / "torn", 1) / "adapter_model.safetensors"
        os.truncate(torn, torn.stat().st_size - 1)
        await once(lambda: standing(house).get("torn") == ("failed", None))
        write_adapter(builder.adapters / "torn", 1)
        await once(lambda: standing(house)["torn"] == ("ready", 1))


async def test_a_spoiled_update_leaves_what_serves(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder) as house:
        (builder.adapters / "pirate" / "adapter_config.json").write_text("{}")
        await once(lambda: house.catalog.record("pirate")["last_failure"])
        assert standing(house)["pirate"] == ("ready", 1)


async def test_a_rollback_stays_also_after_a_restart(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder) as house:
        write_adapter(builder.adapters / "pirate", 2)
        await once(lambda: standing(house)["pirate"] == ("ready", 2))
        await house.catalog.rollback("pirate")
    for path in (builder.adapters / "pirate").iterdir():
        path.touch()
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 1)
        write_adapter(builder.adapters / "pirate", 3)
        await once(lambda: standing(house)["pirate"] == ("ready", 3))


async def test_a_removal_stays_also_after_a_restart_until_something_else_is_there(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder) as house:
        await house.catalog.remove("pirate")
        (builder.adapters / "pirate" / "adapter_config.json").touch()
    async with watched(builder) as house:
        assert standing(house) == {}
        write_adapter(builder.adapters / "pirate", 2)
        await once(lambda: standing(house).get("pirate") == ("ready", 2))


async def test_a_removed_failure_stays_removed(builder):
    (builder.adapters / "empty").mkdir()
    async with watched(builder) as house:
        await house.catalog.remove("empty")
    async with watched(builder) as house:
        assert standing(house) == {}


async def test_one_that_takes_its_time_holds_up_no_other(builder, monkeypatch):
    monkeypatch.setattr("service.registry.watch.BUSY", 0.05)
    async with watched(builder) as house:
        proceed = asyncio.Event()
        prove = house.engine.prove

        async def slowly(adapter):
            if adapter.name == "slow@1":
                await proceed.wait()
            return await prove(adapter)

        house.engine.prove = slowly
        write_adapter(builder.adapters / "slow", 1)
        await once(lambda: standing(house).get("slow") == ("loading", None))
        write_adapter(builder.adapters / "quick", 1)
        await once(lambda: standing(house).get("quick") == ("ready", 1))
        write_adapter(builder.adapters / "slow", 2)
        proceed.set()
        await once(lambda: standing(house)["slow"] == ("ready", 2))


async def test_a_directory_that_goes_leaves_its_adapter(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder):
        shutil.rmtree(builder.adapters / "pirate")
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 1)


async def test_a_directory_that_goes_may_take_its_adapter_along(builder):
    for name in ("pirate", "cow", "kept"):
        write_adapter(builder.adapters / name, 1)
    async with watched(builder, retire=True) as house:
        shutil.rmtree(builder.adapters / "pirate")
        await once(lambda: "pirate" not in standing(house))
        await house.catalog.publish("kept", builder.adapter(2))
    shutil.rmtree(builder.adapters / "cow")
    shutil.rmtree(builder.adapters / "kept")
    async with watched(builder, retire=True) as house:
        await once(lambda: standing(house) == {"kept": ("ready", 2)})
        write_adapter(builder.adapters / "pirate", 1)
        await once(lambda: standing(house).get("pirate") == ("ready", 2))


async def test_a_home_that_is_gone_takes_nothing_along(builder, monkeypatch):
    monkeypatch.setattr("service.registry.watch.POLL", 0.05)
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder, retire=True, polling=True) as house:
        builder.adapters.rename(builder.adapters.with_name("unmounted"))
        await asyncio.sleep(5 * SETTLE)  # nothing is what must happen
        assert standing(house)["pirate"] == ("ready", 1)


async def test_a_failure_goes_with_its_directory(builder):
    for name in ("empty", "no name"):
        (builder.adapters / name).mkdir()
    async with watched(builder) as house:
        assert set(standing(house)) == {"empty", "no name"}
        for name in ("empty", "no name"):
            (builder.adapters / name).rmdir()
        await once(lambda: standing(house) == {})


async def test_what_the_disk_lost_comes_back_from_its_directory(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder):
        pass
    shutil.rmtree(builder.state / "adapters" / "pirate")
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 2)


async def test_another_base_may_be_allowed_after_the_base_has_changed(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder):
        pass
    other = make_base(builder.source / "other", _name_or_path="somebody/else")
    async with watched(builder, base=other) as house:
        await once(lambda: standing(house)["pirate"] == ("failed", 1))
    async with watched(builder, base=other, lax=["pirate"]) as house:
        await once(lambda: standing(house)["pirate"] == ("ready", 2))


async def test_a_name_that_came_by_upload_is_changed_only_by_what_is_new(builder):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder) as house:
        await house.catalog.publish("pirate", builder.adapter(2))
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 2)


async def test_a_directory_that_was_registered_by_path_is_not_published_again(builder):
    async with builder.open() as house:
        write_adapter(builder.adapters / "pirate", 1)
        await house.catalog.publish_path("pirate", "pirate")
        await house.catalog.publish("pirate", builder.adapter(2))
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 2)


async def test_a_refused_directory_is_tried_again_only_under_other_conditions(builder):
    write_adapter(builder.adapters / "pirate", 1, base_model_name_or_path="somebody/else")
    async with watched(builder) as house:
        first = house.catalog.record("pirate")["last_failure"]
        assert codes(house, "pirate") == ["base_mismatch"]
    async with watched(builder) as house:
        assert house.catalog.record("pirate")["last_failure"] == first, "judged again though nothing has changed"
    async with watched(builder, lax=["pirate"]) as house:
        assert standing(house)["pirate"] == ("ready", 1)


async def test_a_refused_directory_is_tried_again_once_the_base_has_its_right_name(builder):
    write_adapter(builder.adapters / "pirate", 1, base_model_name_or_path="vendor/right")
    async with watched(builder) as house:
        assert codes(house, "pirate") == ["base_mismatch"]
    named = Base.read(builder.base.path, "vendor/right")
    async with watched(builder, base=named) as house:
        assert standing(house)["pirate"] == ("ready", 1)


async def test_nothing_is_read_where_nothing_has_changed(builder, monkeypatch):
    write_adapter(builder.adapters / "pirate", 1)
    async with watched(builder):
        pass

    def read(*_, **__):
        pytest.fail("an unchanged directory was read")

    monkeypatch.setattr("service.registry.watch.digest_of", read)
    monkeypatch.setattr("service.registry.staging.copy_content", read)
    async with watched(builder) as house:
        assert standing(house)["pirate"] == ("ready", 1)


async def test_a_link_out_of_the_directory_is_not_followed(builder):
    (builder.adapters / "linked").symlink_to(builder.adapter(1))
    async with watched(builder) as house:
        assert codes(house, "linked") == ["path_forbidden"]
    async with watched(builder, adapter_paths=[builder.source]) as house:
        assert standing(house)["linked"] == ("ready", 1)


async def test_what_could_not_be_tried_is_tried_later(builder, monkeypatch):
    monkeypatch.setattr("service.registry.watch.RETRY", 0.05)
    async with builder.open():
        pass
    write_adapter(builder.adapters / "pirate", 1)
    full = True

    def step(_):
        if full:
            raise OSError(28, "No space left on device")

    async with watched(builder, step=step) as house:
        assert standing(house) == {}
        with pytest.raises(StoreUnavailable):
            await house.catalog.publish("cow", builder.adapter(2))
        full = False
        await once(lambda: standing(house).get("pirate") == ("ready", 1))


async def test_there_may_be_no_directory(builder):
    async with builder.open() as house:
        for home in (None, builder.adapters / "nowhere"):
            watcher = Watcher(house.catalog, home, settle=SETTLE)
            await watcher.start()
            await watcher.scanned.wait()
            await watcher.stop()


async def test_a_directory_made_later_is_found(builder, monkeypatch):
    monkeypatch.setattr("service.registry.watch.POLL", 0.05)
    builder.adapters.rmdir()
    async with watched(builder) as house:
        write_adapter(builder.adapters / "pirate", 1)
        await once(lambda: standing(house).get("pirate") == ("ready", 1))


async def test_a_name_that_is_not_text_is_listed_as_text(builder):
    (builder.adapters / os.fsdecode(b"\xff")).mkdir()
    async with watched(builder) as house:
        assert [record["name"] for record in house.catalog.records()] == ["\ufffd"]
        await asyncio.sleep(5 * SETTLE)  # that it is still there is what matters
        assert [record["name"] for record in house.catalog.records()] == ["\ufffd"]


# Settling, as a value


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from([None, "x", "y"])), max_size=30), st.floats(0.01, 3))
def test_nothing_is_due_before_it_was_left_alone(sights, settle):
    settling, now, since, stamp = Settling(settle), 0.0, 0.0, "unseen"
    for pause, seen in sights:
        now += pause
        settling.see({"pirate": seen}, now)
        if seen != stamp:
            since, stamp = now, seen
        assert ("pirate" in settling.due(now)) == (since + settle <= now)
        assert settling.next_due() == since + settle


def test_one_that_is_not_whole_gets_its_patience_and_then_a_last_call():
    settling = Settling(1.0)
    settling.see({"pirate": "x"}, 0.0)
    assert not settling.due(1.0)["pirate"].last_call
    settling.incomplete("pirate")
    assert not settling.due(PATIENCE - 0.1)
    assert settling.due(PATIENCE)["pirate"].last_call


def test_what_was_tried_is_not_due_until_it_changes():
    settling = Settling(1.0)
    settling.tried("pirate", "x")
    settling.see({"pirate": "x"}, 0.0)
    assert settling.next_due() is None
    settling.see({"pirate": "y"}, 1.0)
    assert settling.due(2.0)
    settling.tried("pirate", "y")
    assert not settling.due(9.0)


def test_what_went_and_came_back_is_new():
    settling = Settling(1.0)
    settling.tried("pirate", "x")
    settling.see({"pirate": None}, 0.0)
    assert settling.due(1.0)["pirate"].stamp is None
    settling.forget("pirate")
    assert not settling.known
    settling.see({"pirate": "x"}, 1.0)
    assert settling.due(2.0)["pirate"].stamp == "x"


def test_what_was_gone_for_a_moment_only_is_as_it_was():
    settling = Settling(1.0)
    settling.tried("pirate", "x")
    settling.see({"pirate": None}, 0.0)
    settling.see({"pirate": "x"}, 0.5)
    assert not settling.due(9.0)


# Stamps


def test_a_stamp_tells_any_change(tmp_path):
    seen = {stamp_of(tmp_path)}
    for change in (
        lambda: (tmp_path / "a").write_text("1"),
        lambda: (tmp_path / "a").write_text("22"),
        lambda: os.utime(tmp_path / "a", (1, 1)),
        lambda: (tmp_path / "a").rename(tmp_path / "b"),
        (tmp_path / "b").unlink,
    ):
        change()
        seen.add(stamp_of(tmp_path))
    assert len(seen) == 5, "five states, of which the first and the last are the same"


def test_a_file_of_the_same_size_and_date_is_another_file(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "new").write_text(content)
        os.utime(tmp_path / "new", (1, 1))
        (tmp_path / "new").rename(tmp_path / "weights")
        if content == "one":
            before = stamp_of(tmp_path)
    assert stamp_of(tmp_path) != before


# File systems


@pytest.mark.parametrize(
    ("path", "expected"), [("/data/models", True), ("/data", False), ("/dat", False), ("/", False)]
)
def test_the_innermost_mount_decides(tmp_path, path, expected):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:9 / /data rw shared:1 - ext4 /dev/sdb rw\n"
        "3 2 0:9 / /data/models rw - nfs4 server:/export rw\n"
    )
    assert is_remote(Path(path), mounts) is expected


def test_where_mounts_cannot_be_read_notifications_are_trusted(tmp_path):
    assert not is_remote(tmp_path, tmp_path / "nothing")
