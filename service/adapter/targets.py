"""Which modules a configuration targets by name, as PEFT finds them.

A regular expression in their place is a stranger's and is not run; what was trained, the tensors say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.adapter.spec import Problem, ProblemCode, WarningCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.adapter.base import Base
    from service.adapter.findings import Findings
    from service.adapter.placement import Placed

_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")
"""PEFT's own way to find a layer's number."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Names to train, names to leave out, and the layers it was restricted to (None: all)."""

    names: frozenset[str]
    excluded: frozenset[str]
    layers: frozenset[int] | None

    def __contains__(self, module: str) -> bool:
        """Whether the module at this path is targeted."""
        endings = set(_endings(module))
        if not endings & self.names or endings & self.excluded:
            return False
        layer = _LAYER.match(module)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)


def read_targets(fields: Mapping[str, Any]) -> Targets | None:
    """The targets of a configuration; None where a regular expression or a pattern for layers is among them."""
    names, excluded = fields.get("target_modules"), fields.get("exclude_modules") or []
    layers = fields.get("layers_to_transform")
    if not isinstance(names, list) or not isinstance(excluded, list) or fields.get("layers_pattern"):
        return None
    numbers = layers if isinstance(layers, list) else [layers]
    return Targets(
        frozenset(name for name in names if isinstance(name, str)),
        frozenset(name for name in excluded if isinstance(name, str)),
        None if layers is None or layers == [] else frozenset(number for number in numbers if type(number) is int),
    )


def judge_targets(placed: Sequence[Placed], fields: Mapping[str, Any], base: Base, findings: Findings) -> None:
    """Refuse a configuration whose targets the base hasn't got; warn when the file lacks some of them."""
    targets = read_targets(fields)
    if targets is None or not targets.names:
        return
    targeted = {module for module in base.modules if ".experts." not in module and module in targets}
    if not targeted and not fields.get("target_parameters") and not any(one.trained in targets for one in placed):
        findings.problems.append(
            Problem(
                ProblemCode.UNKNOWN_MODULE,
                "No module of the base is among those the configuration targets.",
                "target_modules",
                "Take both files from the same save, and serve them on the base model they were trained on.",
            )
        )
    missing = sorted(targeted - {one.module for one in placed})
    if missing:
        findings.warnings.append(
            Problem(
                WarningCode.PARTIAL,
                f"Its configuration targets {len(targeted)} modules of the base; {len(missing)} of them are not there.",
                missing[0],
                "Make sure the file is the whole of what was trained. What it holds is served.",
            )
        )


def _endings(module: str) -> Iterator[str]:
    """The module's path and every part of it that begins after a dot."""
    parts = module.split(".")
    return (".".join(parts[first:]) for first in range(len(parts)))
