"""When a directory that somebody writes to has been left alone long enough. Pure: stamps and times in, names out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE: Final = 5
"""How many times the settle time a directory gets whose weights are not whole yet: a copy may just be slow."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A directory that has changed and is not yet tried."""

    stamp: str | None
    """What it looks like; None is one that is gone."""
    since: float
    due: float
    last_call: bool = False
    """Whether it is tried whatever it looks like: it had its patience."""


class Settling:
    """Remembers, for each directory, what it looked like and since when; seconds on a clock that never goes back."""

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._waiting: dict[str, Waiting] = {}
        self._tried: dict[str, str] = {}

    def see(self, stamps: Mapping[str, str | None], now: float) -> None:
        """Take note of how some directories look now; None is one that is gone."""
        for name, stamp in stamps.items():
            waiting = self._waiting.get(name)
            if stamp is not None and self._tried.get(name) == stamp:
                self._waiting.pop(name, None)
            elif waiting is None or waiting.stamp != stamp:
                self._waiting[name] = Waiting(stamp, now, now + self._settle)

    def due(self, now: float) -> dict[str, Waiting]:
        """The directories that have been left alone for their time."""
        return {name: waiting for name, waiting in self._waiting.items() if waiting.due <= now}

    def incomplete(self, name: str) -> None:
        """It was due and isn't whole: it gets the rest of its patience."""
        waiting = self._waiting[name]
        due = waiting.since + self._settle * PATIENCE
        self._waiting[name] = replace(waiting, due=due, last_call=True)

    def tried(self, name: str, stamp: str) -> None:
        """It was tried with this stamp, and needn't be again while it keeps it."""
        self._tried[name] = stamp
        if name in self._waiting and self._waiting[name].stamp == stamp:
            del self._waiting[name]

    def forget(self, name: str) -> None:
        """It is gone; should it come back it is new, whatever it looks like."""
        self._tried.pop(name, None)
        self._waiting.pop(name, None)

    def postpone(self, name: str, stamp: str | None, due: float) -> None:
        """It couldn't be tried; do so at `due` unless it changes before."""
        self._tried.pop(name, None)
        self._waiting[name] = Waiting(stamp, due, due)

    @property
    def waiting(self) -> frozenset[str]:
        """The directories worth a look even if nobody reports a change."""
        return frozenset(self._waiting)

    @property
    def known(self) -> frozenset[str]:
        """Every directory that has been seen and hasn't gone since."""
        return frozenset(self._waiting) | frozenset(self._tried)

    def next_due(self) -> float | None:
        """When the next one is due; None when none waits."""
        return min((waiting.due for waiting in self._waiting.values()), default=None)
