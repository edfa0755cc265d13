"""One request's life: lease → hold → run → release.

The lease fixes the version a request began with; the hold keeps that version in the engine. Both end with the
request, whichever way it ends, because leaving one `async with` is the only way to end it.
"""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog

from service.engine.port import Call, Usage
from service.errors import LoradockError, Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from service.engine.port import Engine, EngineAdapter, Reply
    from service.engine.residency import Residency
    from service.registry.catalog import Catalog, Lease
    from service.telemetry import Telemetry

log = structlog.get_logger(__name__)

CLIENT_LEFT: Final = 499
"""nginx's status for a client that went away; only the metrics and the log ever see it."""


class Generation:
    """Answers requests for the base and for adapters, with the parts that all of them share."""

    def __init__(self, engine: Engine, catalog: Catalog, residency: Residency, telemetry: Telemetry) -> None:
        self.engine = engine
        self.residency = residency
        self.telemetry = telemetry
        self._catalog = catalog

    @asynccontextmanager
    async def exchange(self, model: str | None) -> AsyncIterator[Exchange]:
        """One request for `model` (None is the base), from its arrival to its last byte.

        Whoever leaves the block has finished, failed or been cancelled: what the engine still does for it is
        aborted, hold and lease are given back, and the request is counted. Raises ModelNotFound.
        """
        lease = self._catalog.lease(model)
        async with AsyncExitStack() as held:
            held.callback(lease.release)
            exchange = Exchange(self, lease, held)
            held.callback(exchange.count)
            try:
                yield exchange
            except BaseException as error:
                exchange.status = CLIENT_LEFT if _cancelled() else _status(error)
                raise


class Exchange:
    """One request while it is answered. `held` is what its end gives back, last taken first."""

    def __init__(self, generation: Generation, lease: Lease, held: AsyncExitStack) -> None:
        self.status = 200
        self._generation = generation
        self._lease = lease
        self._held = held
        self._usage = Usage()
        self._arrived = time.monotonic()
        self._waited = 0.0

    @property
    def label(self) -> str | None:
        """`NAME@N sha256:DIGEST12`, None for the base."""
        return self._lease.label

    async def answer(self, operation: str, body: Any, raw: Any = None) -> Reply:
        """Let the engine answer; call it once. A stream must be read inside the exchange.

        Raises Unavailable when the adapter can't be brought into the engine, and what the engine raises.
        """
        adapter = self._lease.adapter
        if adapter is not None:
            await self._hold(adapter)
        self._waited = time.monotonic() - self._arrived
        reply = await self._generation.engine.run(operation, Call(body, adapter, raw, self._usage))
        self.status = reply.status
        if reply.stream is not None:
            self._held.push_async_callback(_close, reply.stream)
        return reply

    def count(self) -> None:
        """Hand what this request took to the metrics."""
        if self._usage.not_finite:
            self._generation.telemetry.not_finite(self._lease.name)
        engine_time = self._usage.time_to_first_token
        self._generation.telemetry.answered(
            self._lease.name,
            self.status,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            first_token=None if engine_time is None else self._waited + engine_time,
        )

    async def _hold(self, adapter: EngineAdapter) -> None:
        generation, name = self._generation, self._lease.name
        try:
            with generation.telemetry.waiting(name):
                await generation.residency.hold(adapter)
        except Rejected as error:
            # It was proven when it was published, so this is no fault of the client's.
            log.exception("proven_adapter_refused", adapter=adapter.name)
            raise Unavailable(f"The adapter {name!r} could not be brought into the engine.") from error
        self._held.callback(generation.residency.release, adapter)
        self._held.enter_context(generation.telemetry.running(name))


def _status(error: BaseException) -> int:
    match error:
        case LoradockError():
            return int(error.status)
        case Exception():
            return 500
        case _:
            return CLIENT_LEFT


def _cancelled() -> bool:
    """Whether the scope around the caller is cancelled. vLLM's handlers turn that into an error of their own."""
    return anyio.current_effective_deadline() == -math.inf


async def _close(stream: AsyncIterable[str]) -> None:
    """End a stream, also in a cancelled scope, where every await would be cancelled again."""
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        with anyio.CancelScope(shield=True):
            await aclose()
