"""How large the engine is made on this machine: pure choices, each with its reason in words.

The numbers that vLLM fixes at start (ranks, slots, KV cache, threads) are chosen from the memory and what is
registered, never below the contract's floors; a flag overrides each.
"""

from __future__ import annotations

from dataclasses import dataclass

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM 0.32 accepts for max_lora_rank (vllm.config.lora.MaxLoRARanks)."""

LEAST_RANK = 16
COMFORTABLE_RANK = 64
LEAST_SLOTS = 4
"""With one slot an adapter in a closed loop starves every other for ever."""

SLOT_SHARE = 0.1
"""The part of the memory that slots and cached adapters may take before a comfortable size is given up."""

SPARE = 2
"""Adapters in memory beyond the known ones: versions that are about to replace others."""

KV_SHARE = 0.25
MOST_KV_BYTES = 4 << 30
"""A CPU decodes far too slowly to fill more."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choices are made from. Memory in bytes; `accelerator` is True where the platform is no CPU."""

    cores: int
    memory: int
    accelerator: bool


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user fixed; None leaves the choice to us."""

    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """The adapters that are there when the engine starts."""

    count: int = 0
    largest_rank: int = 0
    """Of what is registered, and so has been proven; 0 when nothing is."""
    claimed_rank: int = 0
    """Of what lies in the adapters directory, unproven; 0 when nothing does."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What the engine is started with. `reasons` has one sentence per choice, keyed by the flag's name."""

    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int
    kv_cache_bytes: int | None
    """None leaves it to vLLM's gpu_memory_utilization."""
    reasons: dict[str, str]


def padded(rank: int) -> int | None:
    """The smallest rank vLLM accepts that holds `rank`, or None when none does."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def choose(machine: Machine, wishes: Wishes, bytes_per_rank: int, known: Known = Known()) -> Sizing:
    """Sizes for an engine on `machine`.

    bytes_per_rank: memory one adapter takes for each unit of its rank, over all modules.
    """
    reasons: dict[str, str] = {}
    share = int(SLOT_SHARE * machine.memory)
    slots = _slots(wishes, reasons)
    least = max(wishes.max_cpu_loras or 2 * slots, slots)
    rank = _rank(wishes, share // (bytes_per_rank * (slots + least)), known, reasons)
    cached = _cached(wishes, slots, share // (bytes_per_rank * rank) - slots, known, reasons)
    reasons["max_lora_rank"] += (
        f"; {bytes_per_rank * rank * (slots + cached) / 2**20:,.0f} MiB when all seats are taken"
    )
    if not machine.accelerator:
        reasons["threads"] = f"{machine.cores}, every core this process may use"
    return Sizing(slots, cached, rank, _kv_cache(machine, reasons), reasons)


def _slots(wishes: Wishes, reasons: dict[str, str]) -> int:
    if wishes.max_loras:
        reasons["max_loras"] = f"{wishes.max_loras}, as asked for"
        return wishes.max_loras
    reasons["max_loras"] = f"{LEAST_SLOTS}: with fewer an adapter waits for another's requests, more cost every step"
    return LEAST_SLOTS


def _cached(wishes: Wishes, slots: int, room: int, known: Known, reasons: dict[str, str]) -> int:
    """room: adapters of the largest rank that fit into the share of the memory beside the slots."""
    if wishes.max_cpu_loras:
        cached = max(wishes.max_cpu_loras, slots)
        raised = "" if cached == wishes.max_cpu_loras else f", raised from {wishes.max_cpu_loras} to cover every slot"
        reasons["max_cpu_loras"] = f"{cached}, as asked for{raised}"
        return cached
    least, wanted = 2 * slots, known.count + SPARE
    cached = max(least, min(wanted, room))
    if cached > least or wanted > least:
        held = f"all {known.count} adapters that are here, and {SPARE} that replace them"
        fits = f"what a tenth of the memory holds at the largest rank; {known.count} adapters are here"
        reasons["max_cpu_loras"] = f"{cached}, {held if cached >= wanted else fits}"
    else:
        reasons["max_cpu_loras"] = f"{cached}, twice the slots, so that a swap evicts nothing that runs"
    return cached


def _rank(wishes: Wishes, affordable: int, known: Known, reasons: dict[str, str]) -> int:
    """affordable: the largest rank that fits into the share of the memory; what is registered is served regardless."""
    if wishes.max_lora_rank:
        rank = padded(wishes.max_lora_rank)
        if rank is None:
            raise ValueError(f"no rank above {RANKS[-1]} can be served; {wishes.max_lora_rank} was asked for")
        reasons["max_lora_rank"] = f"{rank}, as asked for"
        return rank
    comfortable = COMFORTABLE_RANK if affordable >= COMFORTABLE_RANK else LEAST_RANK
    needed = padded(known.largest_rank) or RANKS[-1]
    claimed = padded(known.claimed_rank) or RANKS[-1]
    claimed = claimed if claimed <= affordable else 0
    rank = max(comfortable, needed, claimed)
    if needed == rank > comfortable:
        reasons["max_lora_rank"] = f"{rank}, for the largest registered adapter (rank {known.largest_rank})"
    elif rank > comfortable:
        reasons["max_lora_rank"] = f"{rank}, for what lies in the adapters directory (rank {known.claimed_rank})"
    else:
        reasons["max_lora_rank"] = f"{rank}, what most adapters have at most"
    return rank


def _kv_cache(machine: Machine, reasons: dict[str, str]) -> int | None:
    if machine.accelerator:
        reasons["kv_cache"] = "left to --gpu-memory-utilization"
        return None
    size = min(MOST_KV_BYTES, int(machine.memory * KV_SHARE))
    reasons["kv_cache"] = f"{size / 2**30:.1f} GiB of {machine.memory / 2**30:.1f} GiB available"
    return size
