"""What LoRA adds to one decode step on this CPU, without a server: by adapters and ranks, and where it goes.

    python bench/lora_step.py [--rows 16] [--threads 2]

Shapes of the demo base (30 layers of qkv, o, gate-up, down), bf16, rows of the adapters in turn. `reading` is the time
to read every weight that the step's adapters have, at their own ranks, once; `apart` puts the same adapters into slots
that have no neighbours. Needs the extra `cpu`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from service.engine.cpu_lora.kind import Kind
from service.engine.cpu_lora.layer import Layer
from service.engine.cpu_lora.products import products_for
from service.engine.cpu_lora.step import Step
from service.engine.cpu_lora.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LAYERS, SLOTS, DTYPE = 30, 16, torch.bfloat16
SHAPES = {"qkv": (576, (576, 192, 192)), "o": (576, (576,)), "gate_up": (576, (1536, 1536)), "down": (1536, (576,))}


@dataclass(frozen=True)
class Case:
    adapters: int
    rank: int
    demo: bool = False
    """On q and v only, as the demo adapters are."""
    stride: int = 1

    def __str__(self) -> str:
        where = "q and v" if self.demo else "all"
        return f"rank {self.rank}, {where}, {self.adapters}{' apart' if self.stride > 1 else ''}"


CASES = (
    Case(1, 4, demo=True),
    Case(4, 4, demo=True),
    Case(16, 4, demo=True),
    Case(1, 16),
    Case(4, 16),
    Case(4, 16, stride=5),
    Case(16, 16),
    Case(1, 64),
    Case(4, 64),
    Case(16, 64),
)


class Stack:
    """Every layer of a model with a case's adapters in its slots."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(1)
        self.layers: dict[str, list[Layer]] = {}
        self.raw: list[torch.Tensor] = []
        for name, (inputs, widths) in SHAPES.items():
            kind = Kind(
                inputs,
                tuple(pairwise(accumulate(widths, initial=0))),
                DTYPE,
                SLOTS,
                products_for(DTYPE, (inputs, *widths)),
            )
            self.layers[name] = [self._filled(case, name, kind, widths, generator) for _ in range(LAYERS)]

    def _filled(self, case: Case, name: str, kind: Kind, widths: Sequence[int], generator: torch.Generator) -> Layer:
        layer = Layer(kind)
        for number in range(case.adapters):
            adapted = [not case.demo or (name == "qkv" and slice_ != 1) for slice_ in range(len(widths))]
            a = [_normal((case.rank, kind.inputs), generator) if yes else None for yes in adapted]
            b = [
                _normal((width, case.rank), generator) if yes else None
                for yes, width in zip(adapted, widths, strict=True)
            ]
            self.raw += [each for each in (*a, *b) if each is not None]
            layer.put(number * case.stride, Weights.of(kind, a, b))
        return layer


def _normal(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator).mul_(0.05).to(DTYPE)


def milliseconds(work: Callable[[], object], rounds: int = 25) -> float:
    """Median, after a few that aren't counted."""
    for _ in range(5):
        work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    print("ms a step\n| adapters | LoRA | " + " | ".join(SHAPES) + " | reading |")
    print("| --- " * (3 + len(SHAPES)) + "|")
    for case in CASES:
        stack = Stack(case)
        step = Step(torch.tensor([row % case.adapters * case.stride for row in range(options.rows)]))
        x = {name: torch.randn(options.rows, inputs).to(DTYPE) for name, (inputs, _) in SHAPES.items()}
        y = {name: torch.randn(options.rows, sum(widths)).to(DTYPE) for name, (_, widths) in SHAPES.items()}

        def add(name: str, number: int, stack: Stack = stack, x: dict = x, y: dict = y, step: Step = step) -> None:
            stack.layers[name][number].add(y[name], x[name], step)

        whole = milliseconds(lambda add=add: [add(name, number) for number in range(LAYERS) for name in SHAPES])
        parts = [milliseconds(lambda add=add, name=name: [add(name, n) for n in range(LAYERS)]) for name in SHAPES]
        weights = torch.cat([each.flatten() for each in stack.raw]).view(torch.int32)
        reading = milliseconds(weights.max)
        print(
            f"| {case} | {whole:.1f} | " + " | ".join(f"{each:.1f}" for each in parts) + f" | {reading:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
