"""The narrow way to an engine: what the rest of the house may ask of it, and nothing of how it does it.

Two engines stand behind it: `vllm.py`, the real one, and `echo.py`, small and deterministic, for tests whose
subject is not the engine. Everything that crosses is a frozen dataclass or a plain value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Hashable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """One version of one adapter as the engine knows it.

    Name and path belong together one-to-one for the life of the process: the engine's prefix cache is keyed on
    both, so a name that came back with other weights would be answered from the old ones' cache.
    """

    name: str
    """`NAME@N`, unlike any public name."""
    path: Path
    """An immutable directory of our store: weights in the serving type, adapter_config.json and, only where they
    differ from the base's, chat_template.jinja and tokenizer files."""
    modules: int
    """How many modules the file adapts; the proof counts them again inside the engine."""
    stop_token_ids: tuple[int, ...] = ()
    """End-of-turn tokens of the adapter that the base's generation config doesn't know."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the running engine can hold; fixed when it starts."""

    max_lora_rank: int
    max_loras: int
    """Adapters one step can mix (slots)."""
    max_cpu_loras: int
    """Adapters held in memory, slots included."""
    max_num_seqs: int
    """Sequences one step can advance."""
    max_model_len: int
    dtype: str
    """The serving type: bfloat16, float16 or float32."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the engine found when it tried a freshly loaded adapter."""

    modules: int
    """Modules of the loaded model that hold non-zero weights of this adapter."""
    finite: bool
    """Whether every log-probability of a short greedy answer was a finite number."""
    differs: bool
    """Whether those log-probabilities differ from the base's; identical ones are only worth a warning."""


@dataclass(slots=True)
class Usage:
    """What one request took, filled in while it runs and read when it ends. Times are in seconds."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    time_to_first_token: float | None = None
    not_finite: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to the engine."""

    body: Any
    """The request, parsed into the operation's `request_type`; its `model` is what the client asked for."""
    adapter: EngineAdapter | None
    """The leased version; None is the base."""
    raw: Any = None
    """The HTTP request, for the headers the engine's own handlers read."""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a whole JSON body, or a stream of server-sent events whose encoding is already done."""

    status: int = 200
    body: Mapping[str, Any] | None = None
    stream: AsyncIterable[str] | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One `/v1` route of the engine: its path and the type of its body, so that the OpenAPI document is real."""

    path: str
    name: str
    """The key `Engine.run` takes."""
    request_type: Any
    summary: str


class Pass(Protocol):
    """The right to be in the engine, held by one prompt from entering to its end."""

    def spoke(self, tokens: int) -> None:
        """The engine has generated so many more tokens for it; the first ones say that the prompt was read."""


class Gate(Protocol):
    """What every prompt passes on its way in; `serving.admission.Gate` keeps it."""

    def check(self) -> None:
        """Raise QueueFull when no more requests are taken; to be called before an answer is begun."""

    def admit(self, lane: str, tokens: int, sequences: int, request: Hashable) -> AbstractAsyncContextManager[Pass]:
        """Wait until a prompt may enter, and hold its place.

        lane: the adapter's engine name, "" for the base. tokens: of the prompt, times the answers asked for.
        request: what this prompt has in common with its siblings.
        """


class Engine(Protocol):
    """What runs the base model and its adapters.

    Errors: every method raises `service.errors.LoradockError`s only (`EngineDead` once the engine has stopped).
    """

    @property
    def operations(self) -> Sequence[Operation]:
        """The routes it answers; known before it starts."""

    @property
    def limits(self) -> EngineLimits:
        """Known once started."""

    async def start(self) -> None:
        """Bring the base model up; returns when it answers."""

    async def stop(self) -> None:
        """Abort what still runs and free everything."""

    async def check(self) -> None:
        """Return if it is healthy, raise `EngineDead` if not."""

    async def load(self, adapter: EngineAdapter) -> None:
        """Bring an adapter into memory. Raises `Rejected` when the engine refuses it; nothing of it stays then."""

    async def unload(self, adapter: EngineAdapter) -> None:
        """Take an adapter out of slots and memory; one that isn't loaded is no error. No request may run on it."""

    async def prove(self, adapter: EngineAdapter) -> Proof:
        """Count its modules inside the engine and let it answer a few tokens."""

    async def resident(self) -> Mapping[str, str]:
        """Engine name → "gpu" (in a slot) or "cpu" (in memory) for all that are loaded."""

    async def run(self, operation: str, call: Call) -> Reply:
        """Answer one request. A cancelled call is aborted inside the engine; so is a closed stream."""

    def metrics(self) -> bytes:
        """The engine's own series in Prometheus' text format; empty when it has none."""
