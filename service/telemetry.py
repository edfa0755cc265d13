"""The service's own series, and the one page on which they stand beside the engine's.

An adapter's name is a label while it is served and no longer: `retire` takes its series away, and whatever is
observed of a name that isn't served (a request that outlived its adapter) is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LORA_INFO: Final = "vllm:lora_requests_info"
"""vLLM's name and labels, which routers read to send a request where its adapter already is. The engine's own
series carries engine names and never drops one, so ours stands in its place."""

FIRST_TOKEN_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LOAD_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Telemetry:
    """Counts what the service does. Every method is cheap and may be called from the event loop.

    `base` is the base model's public name, a label for the life of the process; `max_loras` is None until the
    engine is up and says how many adapters one step can mix.
    """

    def __init__(self, base: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double every series, and nobody reads them
        self.registry = CollectorRegistry()
        self.max_loras: int | None = None
        self._served = {base}
        self._waiting: Tally[str] = Tally()
        self._running: Tally[str] = Tally()
        self._states: Callable[[], Mapping[str, int]] = dict
        self._gauges: list[Metric] = []
        self._requests = Counter(
            "loradock_requests", "Requests answered, by HTTP status.", ("adapter", "code"), registry=self.registry
        )
        self._tokens = Counter(
            "loradock_tokens",
            "Tokens read (prompt) and written (completion).",
            ("adapter", "kind"),
            registry=self.registry,
        )
        self._first_token = Histogram(
            "loradock_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ("adapter",),
            buckets=FIRST_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._loads = Counter(
            "loradock_adapter_loads",
            "Attempts to bring a new version into service.",
            ("result",),
            registry=self.registry,
        )
        self._load_seconds = Histogram(
            "loradock_adapter_load_seconds",
            "From an adapter's arrival to its being proven and active.",
            buckets=LOAD_SECONDS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "loradock_refusals",
            "What was turned away, by the code the client was given.",
            ("code",),
            registry=self.registry,
        )
        self._not_finite = Counter(
            "loradock_not_finite",
            "Answers that met a number that is not finite and were failed.",
            ("adapter",),
            registry=self.registry,
        )
        self._splits = Counter(
            "loradock_budget_splits",
            "Requests whose prompts could not all enter the engine together.",
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "loradock_budget_tokens_in_flight",
            "Prompt tokens that have entered the engine and not yet brought a first token.",
            registry=self.registry,
        )
        self._queued = Gauge(
            "loradock_budget_tokens_waiting", "Prompt tokens that wait to enter the engine.", registry=self.registry
        )
        self.registry.register(self)

    def serve(self, name: str) -> None:
        """From now on `name` is a label."""
        self._served.add(name)

    def retire(self, name: str) -> None:
        """Take every series of `name` away."""
        self._served.discard(name)
        for metric in (self._requests, self._tokens, self._first_token, self._not_finite):
            metric.remove_by_labels({"adapter": name})

    def watch_states(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Ask `source` how many adapters are in each state whenever the page is read."""
        self._states = source

    def answered(
        self, name: str, status: int, *, prompt_tokens: int, completion_tokens: int, first_token: float | None
    ) -> None:
        """One request has ended; `first_token` is in seconds, None when there was none."""
        if name not in self._served:
            return
        self._requests.labels(name, str(int(status))).inc()
        self._tokens.labels(name, "prompt").inc(prompt_tokens)
        self._tokens.labels(name, "completion").inc(completion_tokens)
        if first_token is not None:
            self._first_token.labels(name).observe(first_token)

    def not_finite(self, name: str) -> None:
        """An answer was failed because of a NaN."""
        if name in self._served:
            self._not_finite.labels(name).inc()

    def budget(self, waiting: int, in_flight: int) -> None:
        """Prompt tokens at the gate, and in the engine without a first token."""
        self._queued.set(waiting)
        self._in_flight.set(in_flight)

    def split(self) -> None:
        """A request's prompts could not all enter together."""
        self._splits.inc()

    def refused(self, code: str) -> None:
        """Something was turned away with this code."""
        self._refusals.labels(code).inc()

    def loaded(self, result: str, seconds: float) -> None:
        """An attempt to bring a new version into service has ended."""
        self._loads.labels(result).inc()
        self._load_seconds.observe(seconds)

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """While a request on an adapter waits for it to be in the engine."""
        with _tallied(self._waiting, name):
            yield

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """While the engine has a request on an adapter."""
        with _tallied(self._running, name):
            yield

    async def page(self, engine: Callable[[], bytes]) -> bytes:
        """The whole of `/metrics`: the engine's series, in Prometheus' text format, and ours.

        The gauges are read here, on the loop; the page is written in a thread, since thousands of adapters make
        it long.
        """
        self._gauges = list(self._present())
        return await asyncio.to_thread(lambda: _without(engine(), LORA_INFO) + generate_latest(self.registry))

    def describe(self) -> Iterable[Metric]:
        """Nothing to declare: what `collect` yields depends on the moment."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The gauges as they were when the page was asked for."""
        return self._gauges

    def _present(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("loradock_adapters", "Adapters by state.", labels=("state",))
        for state, count in self._states().items():
            states.add_metric((state,), count)
        yield states
        if self.max_loras is not None:
            info = GaugeMetricFamily(
                LORA_INFO,
                "Running stats on lora requests.",
                labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
            )
            labels = (str(self.max_loras), ",".join(sorted(self._waiting)), ",".join(sorted(self._running)))
            info.add_metric(labels, time.time())
            yield info


@contextmanager
def _tallied(tally: Tally[str], name: str) -> Iterator[None]:
    tally[name] += 1
    try:
        yield
    finally:
        tally[name] -= 1
        if not tally[name]:
            del tally[name]


def _without(page: bytes, family: str) -> bytes:
    """A page in the text format without one family: its samples, HELP and TYPE."""
    name = family.encode()
    starts = (name + b"{", name + b" ", b"# HELP " + name + b" ", b"# TYPE " + name + b" ")
    return b"".join(line for line in page.splitlines(keepends=True) if not line.startswith(starts))
