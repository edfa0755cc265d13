"""Memory and speed of a merge against PEFT's own merge_and_unload and save_pretrained.

    .venv/bin/python bench/merge.py --base .base/demo --adapter DIR

Each side runs in a process of its own, alternating, and is measured by what the kernel says: the peak of its resident
memory and the wall time from start to the files on the disk, imports included. The base is split into shards of 300 MB
at most, as model hubs hold large models.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MEGABYTE = 1_000_000
FIXED = 250 * MEGABYTE
SHARE = 1.3
SHARD = 300 * MEGABYTE

PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
OURS = """
import sys
from pathlib import Path
from service.export.convert import convert
from service.export.request import Request

base, adapter, out = sys.argv[1:]
convert(Request(Path(adapter), Path(out), base, verify=False), lambda *_: None)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a directory with a 16-bit model")
    parser.add_argument("--adapter", type=Path, required=True, help="a plain LoRA adapter for it")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        base = shard(options.base, Path(name) / "base")
        sides: dict[str, list[tuple[float, int]]] = {"loradock": [], "PEFT": []}
        for _ in range(options.runs):
            for side, code in (("loradock", OURS), ("PEFT", PEFT)):
                sides[side].append(measure(code, base, options.adapter, Path(name) / "out"))
        report(sides, largest_tensor(base))


def shard(source: Path, target: Path) -> Path:
    """The base again, in files of `SHARD` bytes at most."""
    from service.export.shards import Planned, write_shards
    from service.export.tensors import model_files, open_tensors

    target.mkdir()
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja"} and not file.name.endswith("index.json"):
            shutil.copyfile(file, target / file.name)
    with open_tensors(source, model_files(source)) as tensors:
        planned = [Planned(name, entry.dtype, entry.shape) for name, entry in tensors.entries.items()]
        write_shards(target, planned, lambda tensor: iter([tensors.read(tensor.name)]), limit=SHARD)
    return target


def largest_tensor(base: Path) -> int:
    from service.export.tensors import model_files, open_tensors

    with open_tensors(base, model_files(base)) as tensors:
        return max(entry.end - entry.start for entry in tensors.entries.values())


def measure(code: str, base: Path, adapter: Path, out: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one run; a process that measures its own child starts it."""
    watcher = (
        "import resource, subprocess, sys, time\n"
        "began = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL)\n"
        "print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", watcher, sys.executable, "-c", code, str(base), str(adapter), str(out)]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    shutil.rmtree(out)
    return float(seconds), int(peak)


def report(sides: dict[str, list[tuple[float, int]]], largest: int) -> None:
    bound = int(SHARE * largest + FIXED)
    print(f"largest tensor {largest / MEGABYTE:.1f} MB; bound {bound / MEGABYTE:.1f} MB")
    print("| | seconds (median) | seconds (all) | peak memory, MB |\n| --- | --- | --- | --- |")
    for side, runs in sides.items():
        seconds = [second for second, _ in runs]
        peak = max(peak for _, peak in runs)
        print(
            f"| {side} | {statistics.median(seconds):.2f} | {', '.join(f'{second:.2f}' for second in seconds)} "
            f"| {peak / MEGABYTE:.0f} |"
        )
    if max(peak for _, peak in sides["loradock"]) > bound:
        sys.exit("the merge took more memory than its bound")


if __name__ == "__main__":
    main()
