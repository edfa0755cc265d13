"""What is served under which name."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

import pytest
from builder import engine_with
from tiny_model import BASE_ID

from service.errors import (
    AdapterNotFound,
    Conflict,
    EngineDead,
    ModelNotFound,
    NameTaken,
    NoCapacity,
    Rejected,
    StoreUnavailable,
    TooLarge,
    VersionNotFound,
)

pytestmark = pytest.mark.anyio


def active(house, name="pirate"):
    return house.catalog.record(name)["active"]


def numbers(house, name="pirate"):
    return [version["version"] for version in house.catalog.record(name)["versions"]]


def files(builder):
    return sorted(path.name.partition("-")[0] for path in (builder.state / "adapters").glob("*/*"))


async def once(condition):
    """Let other tasks run until it holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Listener:
    def __init__(self):
        self.names = set()
        self.results = []

    def serve(self, name):
        self.names.add(name)

    def retire(self, name):
        self.names.discard(name)

    def loaded(self, result, seconds):
        assert seconds > 0
        self.results.append(result)


# Publishing


async def test_a_published_adapter_is_served_under_its_name(builder):
    async with builder.open() as house:
        publication = await house.catalog.publish("pirate", builder.adapter(1))
        assert publication.created
        lease = house.catalog.lease("pirate")
        assert lease.name == "pirate"
        assert lease.adapter.name == "pirate@1"
        assert lease.adapter.modules == 2
        assert lease.label == f"pirate@1 sha256:{publication.record['versions'][0]['digest'][:12]}"
        lease.release()


async def test_the_record_is_the_contracts(builder):
    async with builder.open(clock=lambda: 1_700_000_000.25) as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        house.catalog.lease("pirate")
        record = house.catalog.record("pirate")
    now = "2023-11-14T22:13:20.250Z"
    (version,) = record.pop("versions")
    assert re.fullmatch("[0-9a-f]{64}", version.pop("digest"))
    assert version.pop("strength") > 0
    assert version.pop("bytes") > 1000
    assert version.pop("warnings") == record["warnings"]
    warnings = record.pop("warnings")
    assert warnings
    assert all(set(warning) == {"code", "message", "where", "remedy"} for warning in warnings)
    assert version == {"version": 1, "rank": 4, "created": now, "residency": "cpu"}
    assert record == {
        "name": "pirate",
        "state": "ready",
        "active": 1,
        "base": BASE_ID,
        "source": "upload",
        "pinned": False,
        "in_flight": 1,
        "last_used": now,
        "problems": [],
        "last_failure": None,
    }


async def test_what_was_left_behind_is_worth_a_warning(builder):
    source = builder.adapter(1)
    (source / "optimizer.pt").write_bytes(b"a pickle")
    (source / "adapter_model.safetensors").chmod(0o600)
    async with builder.open() as house:
        record = (await house.catalog.publish("pirate", source)).record
    found = {warning["code"]: warning["message"] for warning in record["warnings"]}
    assert "optimizer.pt" in found["files_ignored"]
    assert "0600" in found["permissions"]
    assert not list(builder.state.rglob("optimizer.pt"))


async def test_the_active_content_again_changes_nothing(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        again = await house.catalog.publish("pirate", builder.adapter(1))
        assert not again.created
        assert numbers(house) == [1]


async def test_an_older_content_is_a_new_version(builder):
    async with builder.open() as house:
        for seed in (1, 2, 1):
            await house.catalog.publish("pirate", builder.adapter(seed))
        assert numbers(house) == [1, 2, 3]
        paths = {house.catalog.lease(f"pirate@{number}").adapter.path for number in (1, 2, 3)}
        assert len(paths) == 3


async def test_the_same_content_from_two_clients_at_once_is_one_version(builder):
    async with builder.open() as house:
        both = await asyncio.gather(*(house.catalog.publish("pirate", builder.adapter(1)) for _ in range(2)))
        assert sorted(publication.created for publication in both) == [False, True]
        assert numbers(house) == [1]


async def test_different_contents_at_once_are_versions_in_one_order(builder):
    sources = [builder.adapter(seed) for seed in range(5)]
    async with builder.open() as house:
        many = await asyncio.gather(*(house.catalog.publish("pirate", source) for source in sources))
        assert all(publication.created for publication in many)
        assert sorted(publication.record["active"] for publication in many) == [1, 2, 3, 4, 5]
        assert active(house) == 5


async def test_requests_keep_their_version_and_new_ones_get_the_new(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        old = house.catalog.lease("pirate")
        await house.residency.hold(old.adapter)
        await house.catalog.publish("pirate", builder.adapter(2))
        new = house.catalog.lease("pirate")
        assert (old.adapter.name, new.adapter.name) == ("pirate@1", "pirate@2")
        assert "pirate@1" in house.engine.loaded
        house.residency.release(old.adapter)
        old.release()
        await once(lambda: "pirate@1" not in house.engine.loaded)
        new.release()


async def test_the_newest_versions_are_kept_and_the_others_deleted(builder):
    async with builder.open(keep_versions=2) as house:
        for seed in range(4):
            await house.catalog.publish("pirate", builder.adapter(seed))
        assert numbers(house) == [3, 4]
        await once(lambda: files(builder) == ["3", "4"])


async def test_a_version_too_many_stays_while_somebody_runs_on_it(builder):
    async with builder.open(keep_versions=1) as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        lease = house.catalog.lease("pirate")
        await house.catalog.publish("pirate", builder.adapter(2))
        with pytest.raises(ModelNotFound):
            house.catalog.lease("pirate@1")
        assert files(builder) == ["1", "2"]
        lease.release()
        await once(lambda: files(builder) == ["2"])


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a" * 97, "a@1", "ä", "a b"])
async def test_a_name_that_is_none_is_refused(builder, name):
    async with builder.open() as house:
        with pytest.raises(Rejected) as rejected:
            await house.catalog.publish(name, builder.adapter(1))
        assert [str(problem.code) for problem in rejected.value.problems] == ["name_invalid"]
        assert not house.catalog.records()


async def test_the_bases_name_is_taken(builder):
    async with builder.open(served=["base", "alias"]) as house:
        for name in ("base", "alias"):
            with pytest.raises(NameTaken):
                await house.catalog.publish(name, builder.adapter(1))


async def test_what_is_rejected_is_listed_and_leaves_nothing(builder):
    listener = Listener()
    async with builder.open(observer=listener) as house:
        with pytest.raises(Rejected):
            await house.catalog.publish("cow", builder.adapter(1, peft_type="IA3"))
        record = house.catalog.record("cow")
        assert (record["state"], record["active"], record["versions"]) == ("failed", None, [])
        assert "not_lora" in [problem["code"] for problem in record["problems"]]
        with pytest.raises(ModelNotFound):
            house.catalog.lease("cow")
    assert listener.results == ["rejected"]
    assert listener.names == set()
    assert not files(builder)
    assert not list((builder.state / "staging").iterdir())


async def test_a_failed_update_leaves_what_serves(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        with pytest.raises(Rejected):
            await house.catalog.publish("pirate", builder.adapter(2, base_model_name_or_path="somebody/else"))
        record = house.catalog.record("pirate")
        assert (record["state"], record["active"], record["problems"]) == ("ready", 1, [])
        assert [problem["code"] for problem in record["last_failure"]["problems"]] == ["base_mismatch"]
        assert (await house.catalog.publish("pirate", builder.adapter(3))).record["last_failure"] is None


async def test_another_base_may_be_allowed(builder):
    async with builder.open() as house:
        source = builder.adapter(2, base_model_name_or_path="somebody/else")
        assert (await house.catalog.publish("pirate", source, allow_base_mismatch=True)).created


async def test_too_much_is_too_large(builder):
    async with builder.open(max_bytes=1000) as house:
        with pytest.raises(TooLarge):
            await house.catalog.publish("pirate", builder.adapter(1))
        assert not list((builder.state / "staging").iterdir())


async def test_an_engine_that_refuses_leaves_alias_and_store(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        house.engine.refused.add("pirate@2")
        with pytest.raises(Rejected):
            await house.catalog.publish("pirate", builder.adapter(2))
        assert active(house) == 1
        assert set(house.engine.loaded) == {"pirate@1"}
        assert files(builder) == ["1"]
        assert (await house.catalog.publish("pirate", builder.adapter(2))).record["active"] == 3, (
            "a number is used once"
        )


async def test_a_dead_engine_is_nobodys_fault(builder):
    async with builder.open() as house:
        await house.engine.stop()
        with pytest.raises(EngineDead):
            await house.catalog.publish("pirate", builder.adapter(1))
        assert not house.catalog.records()
        assert not files(builder)


async def test_a_client_that_leaves_does_not_undo_the_publication(builder):
    async with builder.open() as house:
        proving = asyncio.Event()
        proceed = asyncio.Event()
        prove = house.engine.prove

        async def slowly(adapter):
            proving.set()
            await proceed.wait()
            return await prove(adapter)

        house.engine.prove = slowly
        client = asyncio.create_task(house.catalog.publish("pirate", builder.adapter(1)))
        await proving.wait()
        assert house.catalog.record("pirate")["state"] == "loading"
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        proceed.set()
        await once(lambda: house.catalog.record("pirate")["state"] == "ready")


async def test_an_upload_has_a_place_and_leaves_nothing_there(builder):
    async with builder.open() as house:
        with suppress(ZeroDivisionError):
            async with house.catalog.scratch() as scratch:
                (scratch / "file").touch()
                raise ZeroDivisionError
        assert not list((builder.state / "staging").iterdir())


# Leases


async def test_the_base_answers_to_its_names_and_to_none(builder):
    async with builder.open(served=["base", "/models/base"]) as house:
        for model in (None, "base", "/models/base"):
            lease = house.catalog.lease(model)
            assert (lease.name, lease.adapter, lease.label) == ("base", None, None)
            lease.release()


async def test_a_version_is_found_by_number_and_by_digest(builder):
    async with builder.open() as house:
        for seed in (1, 2, 1):
            record = (await house.catalog.publish("pirate", builder.adapter(seed))).record
        first, second = (version["digest"] for version in record["versions"][:2])
        found = {
            selector: house.catalog.lease(f"pirate{selector}").adapter.name
            for selector in ("", "@1", "@2", f"@{first}", f"@{second[:8]}", f"@{second[:12].upper()}")
        }
        assert list(found.values()) == ["pirate@3", "pirate@1", "pirate@2", "pirate@3", "pirate@2", "pirate@2"]
        for selector in ("@4", "@0", "@01", "@", f"@{first[:7]}", "@-1", "@1@1", f"@{'0' * 8}"):
            with pytest.raises(ModelNotFound):
                house.catalog.lease(f"pirate{selector}")


async def test_an_unknown_model_is_told_what_is_near(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        with pytest.raises(ModelNotFound, match="Did you mean 'pirate'"):
            house.catalog.lease("Pirat")
        with pytest.raises(ModelNotFound) as hidden:
            house.catalog.lease("Pirat", visible=lambda name: name != "pirate")
        assert "'pirate'" not in str(hidden.value)


async def test_an_adapter_one_may_not_see_is_exactly_an_unknown_one(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        answers = []
        for model in ("pirate", "zebras"):
            with pytest.raises(ModelNotFound) as unknown:
                house.catalog.lease(model, visible=lambda name: False)
            answers.append(str(unknown.value).replace(model, "…"))
        assert answers[0] == answers[1]


async def test_a_lease_is_given_back_once(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        one, _other = house.catalog.lease("pirate"), house.catalog.lease("pirate")
        assert house.catalog.record("pirate")["in_flight"] == 2
        one.release()
        one.release()
        assert house.catalog.record("pirate")["in_flight"] == 1


async def test_models_are_the_base_and_what_is_ready(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        with pytest.raises(Rejected):
            await house.catalog.publish("cow", builder.adapter(2, peft_type="IA3"))
        assert [(model.name, model.version, model.base) for model in house.catalog.models()] == [
            ("base", None, None),
            ("pirate", 1, "base"),
        ]
        assert house.catalog.counts() == {"ready": 1, "loading": 0, "draining": 0, "failed": 1}


# Rolling back


async def test_a_rollback_leads_to_the_one_before_and_back(builder):
    async with builder.open() as house:
        for seed in (1, 2, 3):
            await house.catalog.publish("pirate", builder.adapter(seed))
        assert (await house.catalog.rollback("pirate"))["active"] == 2
        assert (await house.catalog.rollback("pirate"))["active"] == 3
        assert (await house.catalog.rollback("pirate", 1))["active"] == 1
        assert house.catalog.lease("pirate").adapter.name == "pirate@1"


async def test_a_rollback_stays_after_a_restart(builder):
    async with builder.open() as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
        await house.catalog.rollback("pirate")
    async with builder.open() as house:
        assert active(house) == 1
        assert (await house.catalog.rollback("pirate"))["active"] == 2


async def test_a_rollback_while_the_version_still_drains(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        lease = house.catalog.lease("pirate")
        await house.catalog.publish("pirate", builder.adapter(2))
        await house.catalog.rollback("pirate")
        lease.release()
        await once(lambda: "pirate@2" not in house.engine.loaded)
        assert "pirate@1" in house.engine.loaded


async def test_a_rollback_to_nowhere(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        with pytest.raises(Conflict):
            await house.catalog.rollback("pirate")
        with pytest.raises(VersionNotFound):
            await house.catalog.rollback("pirate", 7)
        with pytest.raises(AdapterNotFound):
            await house.catalog.rollback("cow")


async def test_a_rollback_the_engine_refuses_changes_nothing(builder):
    async with builder.open() as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
        await once(lambda: "pirate@1" not in house.engine.loaded)
        house.engine.refused.add("pirate@1")
        with pytest.raises(Rejected):
            await house.catalog.rollback("pirate")
        assert active(house) == 2


# Removing


async def test_a_removed_adapter_is_gone_with_its_files(builder):
    listener = Listener()
    async with builder.open(observer=listener) as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        assert listener.names == {"pirate"}
        await house.catalog.remove("pirate")
        for ask in (house.catalog.record, house.catalog.lease):
            with pytest.raises((AdapterNotFound, ModelNotFound)):
                ask("pirate")
        assert not house.engine.loaded
        assert not files(builder)
        assert listener.names == set()
    async with builder.open() as house:
        assert not house.catalog.records()


async def test_a_removal_waits_for_those_who_run_and_takes_nobody_new(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        lease = house.catalog.lease("pirate")
        removal = asyncio.create_task(house.catalog.remove("pirate"))
        await once(lambda: house.catalog.record("pirate")["state"] == "draining")
        with pytest.raises(ModelNotFound):
            house.catalog.lease("pirate")
        with pytest.raises(AdapterNotFound):
            await house.catalog.remove("pirate")
        assert files(builder) == ["1"]
        assert not removal.done()
        lease.release()
        await removal
        assert not files(builder)


async def test_a_removed_name_comes_back_with_new_numbers(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        await house.catalog.remove("pirate")
    async with builder.open() as house:
        assert (await house.catalog.publish("pirate", builder.adapter(1))).record["active"] == 2


async def test_a_name_is_published_again_while_its_old_versions_drain(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        lease = house.catalog.lease("pirate")
        removal = asyncio.create_task(house.catalog.remove("pirate"))
        await once(lambda: house.catalog.record("pirate")["state"] == "draining")
        await house.catalog.publish("pirate", builder.adapter(2))
        assert house.catalog.record("pirate")["state"] == "ready"
        lease.release()
        await removal
        assert files(builder) == ["2"]


async def test_a_failed_name_can_be_removed(builder):
    async with builder.open() as house:
        with pytest.raises(Rejected):
            await house.catalog.publish("cow", builder.adapter(2, peft_type="IA3"))
        await house.catalog.remove("cow")
        assert not house.catalog.records()


async def test_one_version_is_removed_unless_it_is_active(builder):
    async with builder.open() as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
        with pytest.raises(Conflict):
            await house.catalog.remove_version("pirate", 2)
        await house.catalog.remove_version("pirate", 1)
        assert numbers(house) == [2]
        assert files(builder) == ["2"]
        with pytest.raises(VersionNotFound):
            await house.catalog.remove_version("pirate", 1)


# Pins


async def test_a_pin_is_loaded_moves_with_the_name_and_survives_a_restart(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        assert (await house.catalog.pin("pirate"))["pinned"]
        await house.catalog.publish("pirate", builder.adapter(2))
        assert house.residency._seats.pins == {"pirate@2"}
    async with builder.open() as house:
        assert house.residency._seats.pins == {"pirate@2"}
        await once(lambda: "pirate@2" in house.engine.loaded)
        assert not (await house.catalog.unpin("pirate"))["pinned"]
        assert house.residency._seats.pins == set()


async def test_pins_leave_room_to_swap(builder):
    async with builder.open(engine=engine_with(max_loras=2, max_cpu_loras=3)) as house:
        for name in ("one", "two"):
            await house.catalog.publish(name, builder.adapter(1))
        await house.catalog.pin("one")
        with pytest.raises(NoCapacity):
            await house.catalog.pin("two")
        assert not house.catalog.record("two")["pinned"]
        await house.catalog.publish("two", builder.adapter(2))


# What a start finds


async def test_what_was_published_is_served_after_a_restart(builder):
    async with builder.open() as house:
        record = (await house.catalog.publish("pirate", builder.adapter(1))).record
    async with builder.open() as house:
        again = house.catalog.record("pirate")
        assert again["state"] == "ready"
        assert again["versions"] == [{**record["versions"][0], "residency": "disk"}]
        lease = house.catalog.lease("pirate")
        await house.residency.hold(lease.adapter)
        assert house.catalog.record("pirate")["versions"][0]["residency"] == "cpu"
        house.residency.release(lease.adapter)
        lease.release()


async def test_a_version_whose_files_are_lost_is_failed_and_can_be_published_again(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        path = house.catalog.lease("pirate").adapter.path
    path.rename(builder.state / "elsewhere")
    async with builder.open() as house:
        record = house.catalog.record("pirate")
        assert (record["state"], [problem["code"] for problem in record["problems"]]) == ("failed", ["weights_missing"])
        with pytest.raises(ModelNotFound):
            house.catalog.lease("pirate")
        assert (await house.catalog.publish("pirate", builder.adapter(1))).record["state"] == "ready"


async def test_a_damaged_reference_is_failed_and_left_alone_until_it_is_deleted(builder):
    async with builder.open() as house:
        for name in ("pirate", "cow"):
            await house.catalog.publish(name, builder.adapter(1))
    (builder.state / "refs" / "pirate.json").write_text("{")
    async with builder.open() as house:
        assert house.catalog.record("pirate")["state"] == "failed"
        assert house.catalog.record("cow")["state"] == "ready"
        with pytest.raises(StoreUnavailable):
            await house.catalog.publish("pirate", builder.adapter(1))
        assert files(builder) == ["1", "1"]
        await house.catalog.remove("pirate")
        assert (await house.catalog.publish("pirate", builder.adapter(1))).record["active"] == 2


async def test_a_name_the_base_has_taken_is_failed(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
    async with builder.open(served=["pirate"]) as house:
        record = house.catalog.record("pirate")
        assert [problem["code"] for problem in record["problems"]] == ["name_taken"]
        assert house.catalog.lease("pirate").adapter is None
    async with builder.open() as house:
        assert house.catalog.record("pirate")["state"] == "ready"


async def test_a_full_disk_is_a_503_and_changes_nothing(builder):
    full = False

    def step(_):
        if full:
            raise OSError(28, "No space left on device")

    async with builder.open(step=step) as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        await house.catalog.publish("pirate", builder.adapter(2))
        full = True
        for change in (
            house.catalog.publish("pirate", builder.adapter(3)),
            house.catalog.rollback("pirate"),
            house.catalog.remove("pirate"),
            house.catalog.remove_version("pirate", 1),
            house.catalog.pin("pirate"),
        ):
            with pytest.raises(StoreUnavailable):
                await change
            assert active(house) == 2
        lease = house.catalog.lease("pirate")
        await house.residency.hold(lease.adapter)
        house.residency.release(lease.adapter)
        full = False
        assert (await house.catalog.rollback("pirate"))["active"] == 1


async def test_a_disk_that_fills_up_at_the_last_write_takes_the_new_version_away(builder):
    def step(name):
        if name == "replace.sync" and armed:
            raise OSError(28, "No space left on device")

    armed = False
    async with builder.open(step=step) as house:
        await house.catalog.publish("pirate", builder.adapter(1))
        armed = True
        with pytest.raises(StoreUnavailable):
            await house.catalog.publish("pirate", builder.adapter(2))
        assert active(house) == 1
        assert set(house.engine.loaded) == {"pirate@1"}
        assert files(builder) == ["1"]


async def test_a_store_that_is_read_only_serves_what_it_has(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))

    async with builder.open() as house:
        house.store.writable = False
        lease = house.catalog.lease("pirate")
        await house.residency.hold(lease.adapter)
        house.residency.release(lease.adapter)
        with pytest.raises(StoreUnavailable):
            await house.catalog.publish("pirate", builder.adapter(2))


async def test_an_absurd_model_name_is_answered_briefly(builder):
    async with builder.open() as house:
        with pytest.raises(ModelNotFound) as unknown:
            house.catalog.lease("x" * 100_000)
        assert len(str(unknown.value)) < 400
