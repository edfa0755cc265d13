"""Who counts what happens in the registry, and the twin that doesn't."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """What the registry tells; `telemetry.Telemetry` listens."""

    def serve(self, name: str) -> None:
        """Requests may be answered under this name from now on."""

    def retire(self, name: str) -> None:
        """And no longer."""

    def loaded(self, result: str, seconds: float) -> None:
        """An attempt to bring a new version into service has ended: `ok`, `rejected` or `error`."""


class NullObserver:
    """Counts nothing."""

    def serve(self, name: str) -> None:
        """Not counted."""

    def retire(self, name: str) -> None:
        """Not counted."""

    def loaded(self, result: str, seconds: float) -> None:
        """Not counted."""
