"""vLLM's series, written many steps at a time."""

from __future__ import annotations

from collections import deque
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

STEPS = 16
"""After so many, so that nobody waits for a long list when the series are read."""


class Ledger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM's types are not followed
    """What vLLM records of each step, in the order it happened.

    Sixty counters are touched once in many steps and not in each, between which the weights pass through the
    processor's caches. Whoever reads the series writes first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._steps: deque[tuple[tuple[Any, ...], dict[str, Any]]] = deque()
        super().__init__(*args, **kwargs)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Note one step."""
        self._steps.append((args, kwargs))
        if len(self._steps) >= STEPS:
            self.write()

    def write(self) -> None:
        """Bring the series up to date; may be called from any thread."""
        while True:
            try:
                args, kwargs = self._steps.popleft()
            except IndexError:
                return
            super().record(*args, **kwargs)
