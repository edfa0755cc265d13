"""The engine's sizes: never below the floors, never above what vLLM accepts, each with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sizing import LEAST_RANK, LEAST_SLOTS, RANKS, Known, Machine, Wishes, choose, padded

MACHINES = st.builds(Machine, st.integers(1, 256), st.integers(1 << 28, 1 << 42), st.booleans())
KNOWN = st.builds(Known, st.integers(0, 5000), st.integers(0, 512), st.integers(0, 5000))
MAYBE = st.none() | st.integers(1, 512)


@given(MACHINES, st.builds(Wishes, MAYBE, MAYBE, MAYBE), st.integers(1, 1 << 24), KNOWN)
def test_sizes_always_fit_together(machine: Machine, wishes: Wishes, bytes_per_rank: int, known: Known) -> None:
    """Whatever the machine and the wishes, vLLM accepts the result."""
    sizing = choose(machine, wishes, bytes_per_rank, known)
    assert sizing.max_lora_rank in RANKS
    assert sizing.max_cpu_loras >= sizing.max_loras
    assert sizing.max_loras == (wishes.max_loras or LEAST_SLOTS)
    if wishes.max_lora_rank is None:
        assert sizing.max_lora_rank >= max(LEAST_RANK, known.largest_rank)
    assert (sizing.kv_cache_bytes is None) == machine.accelerator
    threads = set() if machine.accelerator else {"threads"}
    assert set(sizing.reasons) == {"max_loras", "max_cpu_loras", "max_lora_rank", "kv_cache"} | threads


def test_comfortable_rank_where_memory_allows() -> None:
    """Rank 64 on a roomy machine, 16 on a tight one, more where a registered adapter needs it."""
    roomy, tight = Machine(2, 24 << 30, accelerator=False), Machine(2, 1 << 30, accelerator=False)
    assert choose(roomy, Wishes(), 1 << 20).max_lora_rank == 64
    assert choose(tight, Wishes(), 1 << 20).max_lora_rank == 16
    assert choose(tight, Wishes(), 1 << 20, Known(1, 33)).max_lora_rank == 64
    assert "rank 33" in choose(tight, Wishes(), 1 << 20, Known(1, 33)).reasons["max_lora_rank"]


def test_a_rank_nobody_serves() -> None:
    """Above 512 there is no answer, and it is said."""
    assert padded(513) is None
    with pytest.raises(ValueError, match="512"):
        choose(Machine(2, 24 << 30, accelerator=False), Wishes(max_lora_rank=600), 1)


def test_what_is_known_is_made_room_for() -> None:
    """All of three and of sixty-four in memory where they fit, as many as fit where they don't."""
    roomy, tight = Machine(2, 24 << 30, accelerator=False), Machine(2, 1 << 30, accelerator=False)
    assert choose(roomy, Wishes(), 1 << 19, Known(3)).max_cpu_loras == 8
    sizing = choose(roomy, Wishes(), 1 << 19, Known(64))
    assert (sizing.max_cpu_loras, sizing.reasons["max_cpu_loras"]) == (
        66,
        "66, all 64 adapters that are here, and 2 that replace them",
    )
    assert choose(tight, Wishes(), 1 << 19, Known(64)).max_cpu_loras == 8
    assert "64 adapters are here" in choose(tight, Wishes(), 1 << 19, Known(64)).reasons["max_cpu_loras"]


def test_an_unproven_claim_is_heard_as_far_as_memory_goes() -> None:
    """A directory may ask for rank 128; nobody gets gigabytes for a number in a file."""
    roomy, tight = Machine(2, 24 << 30, accelerator=False), Machine(2, 1 << 30, accelerator=False)
    assert choose(roomy, Wishes(), 1 << 19, Known(1, claimed_rank=100)).max_lora_rank == 128
    assert choose(tight, Wishes(), 1 << 19, Known(1, claimed_rank=100)).max_lora_rank == 16
    assert choose(roomy, Wishes(), 1 << 23, Known(1, claimed_rank=4096)).max_lora_rank == 16
