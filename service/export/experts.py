"""LoRA over the experts of a mixture: one pair of the adapter for all experts of a layer, however the base keeps them.

In the model's code the experts of a layer are two stacked parameters, `gate_up_proj` (into the hidden units, the
gate's outputs before the up projection's) and `down_proj` (back). Files hold either those stacks or a matrix of each
expert. An adapter doesn't say which of the two a pair is for; the shapes do, since no layer has in and out alike in
both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.adapter.spec import ProblemCode
from service.export import naming
from service.export.changes import Change, OneExpert, Stack
from service.export.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.adapter.config import AdapterConfig
    from service.adapter.safetensors_header import TensorEntry

WRAPPER = ".base_layer"
"""What PEFT inserts for the inner one of two parameters that it wraps on one module."""
STACK_DIMENSIONS = 3
OF_ONE_EXPERT = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
OLDER_ROOTS = (("", ""), (".mlp.experts", ".block_sparse_moe.experts"))


@dataclass(frozen=True, slots=True)
class Layer:
    """The experts of one layer: how many, how large, and under which names the base keeps them."""

    experts: int
    hidden: int
    inner: int
    gate_up: tuple[tuple[str, ...], ...] = ()
    """For each expert the names of its gate and up matrices; empty when the base keeps stacks."""
    down: tuple[str, ...] = ()
    stacked_gate_up: str = ""
    stacked_down: str = ""
    transposed: bool = False
    """Whether the stacks are [experts, in, out]."""


def find_layer(path: str, base: Mapping[str, TensorEntry]) -> Layer | None:
    """The experts of the module at `path`, or None when the base has none there."""
    return _stacked(path, base) or _separate(path, base)


def expert_changes(
    path: str, names: tuple[str, str], ours: Mapping[str, TensorEntry], layer: Layer, config: AdapterConfig
) -> dict[str, Change] | Refusal:
    """What a pair over experts does to the tensors of the base, or why it doesn't fit them."""
    a, b = names
    inputs, outputs = ours[a].shape[1], ours[b].shape[0]
    sizes = {(layer.hidden, 2 * layer.inner): "gate_up_proj", (layer.inner, layer.hidden): "down_proj"}
    parameter = sizes.get((inputs, outputs))
    if parameter is None:
        return Refusal(
            ProblemCode.SHAPE_MISMATCH,
            f"{path}: the adapter's experts take {inputs} and give {outputs}; the base's are "
            f"{layer.hidden} → {layer.inner} → {layer.hidden}.",
            a,
        )
    full = f"{path}.{parameter}"
    rank, scale = config.rank(full), config.scale(full)
    packed = (ours[a].shape[0], ours[b].shape[1])
    if rank is None or scale is None or packed != (rank * layer.experts,) * 2:
        return Refusal(
            ProblemCode.RANK_MISMATCH,
            f"{path}: {layer.experts} experts of rank {rank} make {layer.experts * (rank or 0)} rows; the adapter's "
            f"matrices have {packed[0]} and {packed[1]}.",
            a,
        )
    return dict(_changes(layer, parameter, a, b, scale))


def _changes(layer: Layer, parameter: str, a: str, b: str, scale: float) -> Iterator[tuple[str, Change]]:
    if layer.stacked_down:
        name = layer.stacked_down if parameter == "down_proj" else layer.stacked_gate_up
        yield name, Change(recipe=Stack(a, b, scale, layer.experts, layer.transposed))
        return
    for number in range(layer.experts):
        if parameter == "down_proj":
            recipe = OneExpert(a, b, scale, layer.experts, number, 0, layer.hidden)
            yield layer.down[number], Change(recipe=recipe)
            continue
        for half, name in enumerate(layer.gate_up[number]):
            recipe = OneExpert(a, b, scale, layer.experts, number, half * layer.inner, layer.inner)
            yield name, Change(recipe=recipe)


def _stacked(path: str, base: Mapping[str, TensorEntry]) -> Layer | None:
    gate_up, down = naming.on_disk(f"{path}.gate_up_proj", base), naming.on_disk(f"{path}.down_proj", base)
    if gate_up is None or down is None:
        return None
    up_shape, down_shape = base[gate_up].shape, base[down].shape
    if len(up_shape) != STACK_DIMENSIONS or len(down_shape) != STACK_DIMENSIONS or up_shape[0] != down_shape[0]:
        return None
    for transposed in (False, True):
        (out, hidden), (back, inner) = up_shape[1:], down_shape[1:]
        if transposed:
            (hidden, out), (inner, back) = up_shape[1:], down_shape[1:]
        if hidden == back and out == 2 * inner:
            return Layer(up_shape[0], hidden, inner, stacked_gate_up=gate_up, stacked_down=down, transposed=transposed)
    return None


def _separate(path: str, base: Mapping[str, TensorEntry]) -> Layer | None:
    for new, old in OLDER_ROOTS:
        root = path.replace(new, old) if new else path
        for gate, up, down in OF_ONE_EXPERT:
            first = naming.on_disk(f"{root}.0.{down}.weight", base)
            if first is None:
                continue
            prefix = first.removesuffix(f"0.{down}.weight")
            count = next(number for number in range(len(base) + 1) if f"{prefix}{number}.{down}.weight" not in base)
            hidden, inner = base[first].shape
            pairs = tuple(
                (f"{prefix}{number}.{gate}.weight", f"{prefix}{number}.{up}.weight") for number in range(count)
            )
            downs = tuple(f"{prefix}{number}.{down}.weight" for number in range(count))
            if all(name in base for pair in pairs for name in pair):
                return Layer(count, hidden, inner, gate_up=pairs, down=downs)
    return None
