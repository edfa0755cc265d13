"""What is asked of a conversion, and whom it tells how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants converted, and how."""

    source: Path
    out: Path
    model: str | None = None
    """The base: a directory, or a hub id in the local cache; else what the adapter names."""
    dtype: str = "bfloat16"
    verify: bool = True
    verify_engine: bool = False
    allow_base_mismatch: bool = False
    rope_factor: float | None = None
    """By how much positions were stretched in training; None when that was never said."""


class Progress(Protocol):
    """Told what is being done, and how much of it when that is known."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """`done` of `total` bytes of `stage`; a `total` of 0 is unknown."""
