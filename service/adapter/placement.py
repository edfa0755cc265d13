"""Where an adapter's tensors belong in the base: names resolved, prefixes mended, pairs put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from service.adapter.tensor_names import ROOT, Part, TensorName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.adapter.base import Base

PREFIXES = ("model.", "language_model.model.", "model.language_model.", "language_model.", "model.model.", "")
"""What different versions of transformers and of a model's wrapper put before the same `layers.N`."""
FUSED = {".experts.base_layer": ".experts.gate_up_proj", ".experts": ".experts.down_proj"}
"""How PEFT names the two stacked matrices of a mixture's experts → what they are."""
SAMPLE = 4096
"""Modules a rewriting is chosen by."""
WRAPPED = ".linear"
"""What Gemma 4's clipped projections are wrapped in while training."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One module of the adapter, found in the base."""

    module: str
    """Path in the base."""
    trained: str
    """Path as the adapter has it: what rank and alpha patterns speak of."""
    tensors: Mapping[Part, str]
    """lora_A and lora_B → tensor name in the file."""


@dataclass(frozen=True, slots=True)
class Placement:
    """All of an adapter's pairs against one base."""

    placed: tuple[Placed, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Module the base lacks → one of its tensors."""


def place(names: Mapping[str, TensorName], base: Base) -> Placement:
    """Find every lora_A and lora_B's module in the base.

    Where names don't fit as they are, one rewriting of their beginnings that makes all fit is used, if there is
    exactly one that makes most of them fit; a part that still has no place stays unknown.
    """
    groups: dict[str, dict[Part, str]] = {}
    for tensor, name in names.items():
        groups.setdefault(name.module, {})[name.part] = tensor
    rewrite = _choose(groups, base)
    placed, unknown = [], {}
    for module, tensors in groups.items():
        path = target_path(rewrite.apply(module), base)
        if path is None:
            unknown[module] = next(iter(tensors.values()))
        else:
            placed.append(Placed(path, module, tensors))
    return Placement(tuple(placed), unknown)


def target_path(module: str, base: Base) -> str | None:
    """The module's path in the base, or None. Fused experts become the matrix they stand for."""
    if module in base.modules:
        return module
    matrix = parameter(module)
    if matrix != module and matrix.rpartition(".")[0] in base.experts:
        return matrix
    unwrapped = module.removesuffix(WRAPPED)
    return unwrapped if unwrapped != module and unwrapped in base.modules else None


def served_name(placed: Placed, part: Part) -> str:
    """The tensor's name in the serving copy: PEFT's form, with the base's own path."""
    module = placed.module
    for ending, matrix in FUSED.items():
        if module.endswith(matrix) and placed.trained.endswith(ending):
            module = module.removesuffix(matrix) + ending
    return f"{ROOT}{module}.{part.value}.weight"


def parameter(module: str) -> str:
    """What rank and alpha patterns are matched against: a module's path, or a fused matrix's own name."""
    return next((module.removesuffix(end) + matrix for end, matrix in FUSED.items() if module.endswith(end)), module)


@dataclass(frozen=True, slots=True)
class _Rewrite:
    old: str
    new: str

    def apply(self, module: str) -> str:
        return self.new + module.removeprefix(self.old) if module.startswith(self.old) else module


_NOTHING = _Rewrite("", "")


def _choose(modules: Iterable[str], base: Base) -> _Rewrite:
    """The one rewriting under which the most modules have a place; none when names fit, or when two do as well."""
    modules = list(islice(modules, SAMPLE))
    if all(target_path(module, base) for module in modules):
        return _NOTHING
    fits: dict[_Rewrite, int] = {_NOTHING: _fitting(_NOTHING, modules, base)}
    for old in PREFIXES:
        for new in PREFIXES:
            if old != new:
                fits[_Rewrite(old, new)] = _fitting(_Rewrite(old, new), modules, base)
    most = max(fits.values())
    best = {tuple(map(rewrite.apply, modules)): rewrite for rewrite, count in fits.items() if count == most}
    if fits[_NOTHING] == most or len(best) != 1:
        return _NOTHING
    return next(iter(best.values()))


def _fitting(rewrite: _Rewrite, modules: Iterable[str], base: Base) -> int:
    return len({path for module in modules if (path := target_path(rewrite.apply(module), base))})
