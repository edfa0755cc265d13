"""What clients may call a version: `NAME`, `NAME@N`, or `NAME@DIGEST` with at least eight digits of the digest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from service.adapter.spec import NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,6}")
_DIGEST: Final = re.compile(r"[0-9a-f]{8,64}")
NEAREST: Final = 3
COMPARED: Final = 200
"""Names compared with a mistyped one. Comparing is slow, and anybody may ask for a name that doesn't exist."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A model name taken apart. With neither number nor digest it means the active version."""

    name: str
    number: int | None = None
    digest: str | None = None


def parse(model: str) -> Selector | None:
    """Take a model name apart; None when no adapter can be called that."""
    name, at, version = model.partition("@")
    if not NAME.fullmatch(name):
        return None
    if not at:
        return Selector(name)
    if _NUMBER.fullmatch(version):
        return Selector(name, number=int(version))
    if _DIGEST.fullmatch(version.lower()):
        return Selector(name, digest=version.lower())
    return None


def nearest(model: str, names: Iterable[str]) -> list[str]:
    """At most three of `names` that look like `model`, the most alike first."""
    asked = model.partition("@")[0].lower()[:96]
    likely = [
        name for name in names if name[:1].lower() == asked[:1] and abs(len(name) - len(asked)) <= len(asked) // 2
    ]
    lowered = {name.lower(): name for name in likely[:COMPARED]}
    return [lowered[match] for match in get_close_matches(asked, lowered, n=NEAREST)]
