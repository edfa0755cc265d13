"""Collecting what is wrong: many tensors with the same fault become one problem, in the contract's order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.adapter.tensor_names import common_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTED = 100
"""Problems of one report; a hostile file could have a different one for each of its tensors."""
_ORDER = {code: number for number, code in enumerate((*ProblemCode, *WarningCode))}


@dataclass(slots=True)
class Findings:
    """What an inspection has found so far."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def gather(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Merge what is said of several tensors into one problem each, in the order of the codes."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.code, problem.message, problem.remedy), []).append(problem)
    merged = sorted((_merge(group) for group in groups.values()), key=lambda problem: _ORDER[problem.code])
    if len(merged) <= LISTED:
        return tuple(merged)
    last = merged[LISTED - 1]
    return (*merged[: LISTED - 1], replace(last, message=f"{last.message} ({len(merged) - LISTED} more problems.)"))


def _merge(group: list[Problem]) -> Problem:
    places = {problem.where for problem in group}
    if len(places) == 1:
        return group[0]
    return replace(group[0], message=f"{group[0].message} ({len(places)} alike)", where=common_pattern(places))
