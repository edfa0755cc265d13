"""What this machine has: cores, memory, an accelerator."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from service.engine.sizing import Machine


def look() -> Machine:
    """Cores this process may use, memory it may still take (bytes), and whether a GPU build of vLLM is installed."""
    return Machine(len(os.sched_getaffinity(0)), available_memory(), accelerator=has_distribution("vllm"))


def available_memory() -> int:
    """Bytes that can be had without swapping, within the control group's limit."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        available = min(available, int(text) - used)
    return available


def has_distribution(name: str) -> bool:
    """Whether a distribution of that name is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def instruction_sets() -> list[str]:
    """Those of the CPU that vLLM's kernels make use of."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split())
            return [feature for feature in wanted if feature in present]
    return []


def accelerators() -> list[str]:
    """Names of the NVIDIA GPUs the driver knows; empty without a driver."""
    cards = Path("/proc/driver/nvidia/gpus")
    if not cards.is_dir():
        return []
    lines = (line for card in cards.iterdir() for line in (card / "information").read_text("ascii").splitlines())
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
