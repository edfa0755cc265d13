r"""`rank_pattern` and `alpha_pattern`: tables from a module's name, or a regular expression for it, to a value.

PEFT and vLLM take each key as a regular expression and match it as `(.*\.)?(KEY)$`; the first key that matches wins.
Whoever uploads an adapter writes these keys, and Python's matcher can be made to run for years. So keys are of a
simple form and of bounded cost here, and the engine never sees them: the serving copy names modules in full.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_LIMIT = 256
"""Characters of one key."""
TABLE_LIMIT = 4096
"""Keys of one table: some initialisations write one for every module."""
COST_LIMIT = 40_000
"""Ways to match that all keys of one table may have together; checked modules in the hundreds take seconds then."""
NAME_LENGTH = 64
"""Characters a repetition may take up: about what a module's path has."""

_ATOM = r"(?:\\[dw.\-_/]|[\w.\-/]|\[[\w\-]+\])"
_REPEATED = rf"{_ATOM}(?:[?*+]|\{{\d{{1,2}}(?:,\d{{1,2}})?\}})?"
SIMPLE = re.compile(rf"\^?(?:{_REPEATED}|\((?:\?:)?(?:{_REPEATED}|\|)*\)|\|)*\$?")
"""Names, classes, repeated characters, and alternatives in groups that are neither nested nor repeated."""
_REPETITION = re.compile(r"(?<!\\)[?*+{]")
_GROUP = re.compile(r"\(([^()]*)\)")

Value = TypeVar("Value")


class Patterns(Generic[Value]):
    """One table, its keys compiled once."""

    def __init__(self, table: Mapping[str, Value]) -> None:
        """Take an acceptable table."""
        self.table = table
        self._matchers = [(re.compile(rf"(?:.*\.)?(?:{key})$"), value) for key, value in table.items()]

    def find(self, module: str) -> Value | None:
        """The value of the first key that matches the module's full path, as PEFT and vLLM find it."""
        return next((value for matcher, value in self._matchers if matcher.match(module)), None)


def unacceptable_key(table: Mapping[str, object]) -> str | None:
    """The first key that is not of a simple form, or with which the table costs too much; None when all are fine."""
    cost = 0.0
    for number, key in enumerate(table):
        if number >= TABLE_LIMIT or len(key) > KEY_LIMIT or not _is_simple(key):
            return key
        cost += _ways(key)
        if cost > COST_LIMIT:
            return key
    return None


def _is_simple(key: str) -> bool:
    if not SIMPLE.fullmatch(key):
        return False
    try:
        re.compile(key)
    except re.error:
        return False
    return True


def _ways(key: str) -> float:
    key = key.replace("(?:", "(")
    repetitions = len(_REPETITION.findall(key))
    alternatives: int = math.prod(1 + group.count("|") for group in _GROUP.findall(key))
    return alternatives * math.pow(NAME_LENGTH, min(repetitions, 9))
