"""Spoiled adapters: what trainers, uploads, disks and strangers do to a healthy directory, and the code of each.

Every defect takes a healthy adapter's directory and spoils a copy of it. `expected` is the whole set of problem codes
the inspection has to answer with when the engine's largest rank is `MAX_RANK`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapter import defects_config, defects_surroundings, defects_weights
from adapter.spoiling import Defect

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFECTS", "MAX_RANK", "Defect", "by_name"]

MAX_RANK = 32
DEFECTS = (*defects_config.DEFECTS, *defects_weights.DEFECTS, *defects_surroundings.DEFECTS)


def by_name() -> Mapping[str, Defect]:
    """All defects; two of one name would hide each other."""
    table = {known.name: known for known in DEFECTS}
    assert len(table) == len(DEFECTS)
    return table
