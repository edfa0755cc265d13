"""Names of base models: whether two of them denote the same weights.

An adapter is named after what its trainer loaded, which for Unsloth is rarely what the user typed: a mirror of the
vendor's repository, a 4-bit copy of it, either in lower case, or a local directory. `unsloth_names.json` lists the
names that denote the same weights; what it doesn't know is judged by its suffix and Unsloth's mirror rule.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MIRROR = "unsloth"
HUB_ID = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*")
CACHED = re.compile(r"(?:^|[/\\])models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)(?:[/\\]|$)")
"""A repository inside the Hugging Face cache, which newer trainers write in the place of its name."""
QUANTISED = re.compile(
    r"(?:-unsloth)?-bnb-[48]bit$|[-_]fp8(?:[-_].*)?$|-awq$|-gptq(?:-int[48])?$|-(?:4|8)bit$|-int8$|-w\d+a\d+$"
)
LOCAL_OWNERS = frozenset(
    {
        "adapters",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "content",
        "data",
        "home",
        "llm",
        "local",
        "lora",
        "merged",
        "mnt",
        "model",
        "models",
        "out",
        "output",
        "outputs",
        "results",
        "root",
        "run",
        "runs",
        "save",
        "saved",
        "saved_models",
        "saves",
        "tmp",
        "trained",
        "trainer_output",
        "workspace",
    }
)
"""First parts of relative paths as trainers write them; no model on the hub is owned by one of these."""
LOCAL_LEAF = re.compile(r"checkpoint-\d+")


class Kinship(Enum):
    """How the name an adapter gives relates to the base that is served."""

    SAME = "the same weights"
    QUANTISED = "the same weights, quantised differently"
    UNKNOWN = "a name that says nothing"
    OTHER = "another model"


def kinship(adapter_base: str | None, base: str) -> Kinship:
    """Relate the base an adapter names to the name of the base that is served, ignoring case."""
    ours, theirs = _normal(base), _normal(adapter_base or "")
    if not theirs or (is_local(theirs) and theirs != ours):
        return Kinship.UNKNOWN
    if ours == theirs:
        return Kinship.SAME
    if _plain(ours) == _plain(theirs) or _same_group(ours, theirs) or _mirrors(ours, theirs):
        return Kinship.SAME if is_quantised(ours) == is_quantised(theirs) else Kinship.QUANTISED
    if is_local(ours) and _leaf(ours) == _leaf(theirs):
        # A base known only by its directory agrees as far as it can say.
        return Kinship.UNKNOWN
    return Kinship.OTHER


def is_local(name: str) -> bool:
    """Whether the name is a path on somebody's machine and not a repository's name."""
    name = name.strip().lower()
    if not HUB_ID.fullmatch(name):
        return True
    owner, leaf = name.split("/")
    return owner in LOCAL_OWNERS or LOCAL_LEAF.fullmatch(leaf) is not None


def is_quantised(name: str) -> bool:
    """Whether the name is that of quantised weights."""
    group = _groups().get(name)
    return QUANTISED.search(name) is not None or (group is not None and name in _quantised()[group])


def _normal(name: str) -> str:
    cached = CACHED.search(name)
    if cached:
        name = "/".join(cached.groups())
    return name.strip().rstrip("/").lower()


def _plain(name: str) -> str:
    return QUANTISED.sub("", name)


def _leaf(name: str) -> str:
    return _plain(name).rsplit("/", 1)[-1]


def _same_group(one: str, other: str) -> bool:
    groups = _groups()
    mine = groups.get(one, groups.get(_plain(one)))
    return mine is not None and mine == groups.get(other, groups.get(_plain(other)))


def _mirrors(one: str, other: str) -> bool:
    """Whether one is Unsloth's copy of the other, by Unsloth's rule of keeping a repository's own name.

    A name the list knows is judged by the list alone: there the same leaf may stand for different weights.
    """
    if is_local(one) or is_local(other) or all(_plain(name) in _groups() for name in (one, other)):
        return False
    return any(name.startswith(f"{MIRROR}/") for name in (one, other)) and _leaf(one) == _leaf(other)


@cache
def _table() -> list[dict[str, list[str]]]:
    text = files("service.adapter").joinpath("unsloth_names.json").read_text(encoding="utf-8")
    groups: list[dict[str, list[str]]] = json.loads(text)["groups"]
    return groups


@cache
def _groups() -> Mapping[str, int]:
    return {name: number for number, group in enumerate(_table()) for name in group["all_lower"]}


@cache
def _quantised() -> tuple[frozenset[str], ...]:
    return tuple(frozenset(name.lower() for name in group["quantised"]) for group in _table())
