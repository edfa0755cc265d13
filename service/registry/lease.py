"""What the registry hands to whoever runs requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.engine.port import EngineAdapter
    from service.registry.entry import Served


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name that requests may ask for. A base has no version, digest, base or date."""

    name: str
    version: int | None = None
    digest: str | None = None
    base: str | None = None
    """The served name of the base it belongs to."""
    created: float | None = None
    """Seconds since the epoch."""


class Lease:
    """The right to run requests on one version: until `release` it is neither unloaded for good nor deleted."""

    def __init__(self, name: str, served: Served | None = None, done: Callable[[], None] | None = None) -> None:
        self.name = name
        """The adapter's public name, or the base's."""
        self.adapter: EngineAdapter | None = served.engine if served else None
        """None is the base."""
        self.label: str | None = served.label if served else None
        """`NAME@N sha256:DIGEST12`; None for the base."""
        self._done = done

    def release(self) -> None:
        """Give it back. A second call does nothing."""
        done, self._done = self._done, None
        if done:
            done()
