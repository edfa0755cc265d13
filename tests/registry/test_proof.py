"""Proof before service, and again when what it was made for has changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from builder import make_base

from service.engine.echo import EchoEngine
from service.engine.port import Proof
from service.errors import Conflict, ModelNotFound, Rejected, Unavailable

pytestmark = pytest.mark.anyio


async def once(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def codes(record):
    return [problem["code"] for problem in record["problems"]]


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        (Proof(0, finite=True, differs=False), ["no_effect"]),
        (Proof(1, finite=True, differs=True), ["unknown_module"]),
        (Proof(2, finite=False, differs=True), ["not_finite"]),
        (Proof(0, finite=False, differs=True), ["no_effect", "not_finite"]),
    ],
)
async def test_what_the_engine_finds_is_a_problem(builder, proof, expected):
    async with builder.open() as house:
        house.engine.proofs["pirate@1"] = proof
        with pytest.raises(Rejected):
            await house.catalog.publish("pirate", builder.adapter(1))
        assert codes(house.catalog.record("pirate")) == expected
        assert not house.engine.loaded
        assert not list((builder.state / "adapters").glob("*/*"))


async def test_an_answer_like_the_bases_is_worth_a_warning(builder):
    async with builder.open() as house:
        house.engine.proofs["pirate@1"] = Proof(2, finite=True, differs=False)
        record = (await house.catalog.publish("pirate", builder.adapter(1))).record
        assert record["state"] == "ready"
        assert "weak_effect" in [warning["code"] for warning in record["warnings"]]


class SlowProof(EchoEngine):
    """Proves nothing until it is told to."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.limits = replace(self.limits, dtype=dtype)
        self.proceed = asyncio.Event()

    async def prove(self, adapter):
        await self.proceed.wait()
        return await super().prove(adapter)


@pytest.mark.parametrize("changed", ["base", "dtype", "rank"])
async def test_a_proof_for_something_else_is_made_again_before_it_serves(builder, changed):
    async with builder.open() as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
    settings = {"max_rank": 32} if changed == "rank" else {}
    if changed == "base":
        settings["base"] = make_base(builder.source / "other", max_position_embeddings=256)
    dtype = "float16" if changed == "dtype" else "bfloat16"
    engine = SlowProof(dtype)
    async with builder.open(engine=engine, **settings) as house:
        assert house.catalog.record("pirate")["state"] == "loading"
        assert house.catalog.counts()["loading"] == 1
        assert [model.name for model in house.catalog.models()] == ["base"]
        with pytest.raises(Unavailable):
            house.catalog.lease("pirate")
        engine.proceed.set()
        await once(lambda: house.catalog.record("pirate")["state"] == "ready")
        assert house.catalog.lease("pirate").adapter.name == "pirate@2"
        await once(lambda: house.catalog._entries["pirate"].served[1].servable)
    async with builder.open(engine=SlowProof(dtype), **settings) as house:
        assert house.catalog.record("pirate")["state"] == "ready", "the new proof was kept"


async def test_what_no_longer_fits_is_failed_and_fits_again_with_its_own_base(builder):
    async with builder.open() as house:
        for seed in (1, 2):
            await house.catalog.publish("pirate", builder.adapter(seed))
    async with builder.open(base=make_base(builder.source / "other", _name_or_path="somebody/else")) as house:
        await once(lambda: house.catalog.record("pirate")["state"] == "failed")
        assert codes(house.catalog.record("pirate")) == ["base_mismatch"]
        with pytest.raises(ModelNotFound):
            house.catalog.lease("pirate")
        await once(lambda: not house.catalog._entries["pirate"].lock.locked())
        with pytest.raises(Conflict):
            await house.catalog.rollback("pirate")
    async with builder.open() as house:
        assert house.catalog.record("pirate")["state"] == "ready"
        assert house.catalog.record("pirate")["last_failure"] is None


async def test_a_rank_above_the_limit_is_failed(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
    async with builder.open(max_rank=2) as house:
        await once(lambda: house.catalog.record("pirate")["state"] == "failed")
        assert codes(house.catalog.record("pirate")) == ["rank_too_large"]


async def test_a_failed_name_is_ready_again_once_something_fitting_is_published(builder):
    async with builder.open() as house:
        await house.catalog.publish("pirate", builder.adapter(1))
    other = make_base(builder.source / "other", _name_or_path="somebody/else")
    async with builder.open(base=other) as house:
        await once(lambda: house.catalog.record("pirate")["state"] == "failed")
        fitting = builder.adapter(2, base_model_name_or_path="somebody/else")
        record = (await house.catalog.publish("pirate", fitting)).record
        assert (record["state"], record["active"], record["problems"]) == ("ready", 2, [])


async def test_one_that_cannot_be_tried_holds_up_no_other(builder):
    async with builder.open() as house:
        for name in ("a", "b"):
            await house.catalog.publish(name, builder.adapter(1))

    class Stumbling(EchoEngine):
        async def prove(self, adapter):
            if adapter.name == "a@1":
                raise RuntimeError("what nobody expected")
            return await super().prove(adapter)

    async with builder.open(engine=Stumbling(), max_rank=32) as house:
        await once(lambda: house.catalog.record("b")["state"] == "ready")
        assert house.catalog.record("a")["state"] == "loading"
