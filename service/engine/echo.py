"""A small deterministic engine behind the same port, for tests whose subject is not the engine.

It answers with the name that was asked and the words it was given, one word a step, and keeps count of what it
was told to do. `steps` is open by default; a test that clears it stops every answer between two words.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from service.adapter.spec import Problem, ProblemCode
from service.engine.port import Call, EngineAdapter, EngineLimits, Operation, Proof, Reply
from service.errors import EngineDead, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from service.engine.port import Gate

OWNER = "loradock"


class EchoCompletion(BaseModel):
    """The fields of a completion that the echo honours; others are allowed, as vLLM allows them."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str
    max_tokens: int = Field(16, ge=1)
    stream: bool = False


class EchoMessage(BaseModel):
    """One turn of a chat."""

    role: str
    content: str


class EchoChat(BaseModel):
    """The fields of a chat completion that the echo honours."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[EchoMessage] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    stream: bool = False


COMPLETIONS = Operation("/v1/completions", "completions", EchoCompletion, "Complete a prompt")
CHAT = Operation("/v1/chat/completions", "chat", EchoChat, "Answer a chat")


class EchoEngine:
    """See the module. `events` lists loads, unloads and aborts in the order they happened."""

    def __init__(self, limits: EngineLimits | None = None, gate: Gate | None = None) -> None:
        self.operations: Sequence[Operation] = (COMPLETIONS, CHAT)
        self.limits = limits or EngineLimits(64, 4, 8, 64, 8192, "bfloat16")
        self._gate = gate
        self.steps = asyncio.Event()
        self.steps.set()
        self.loaded: dict[str, EngineAdapter] = {}
        self.running: dict[str, int] = {}
        self.events: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self.proofs: dict[str, Proof] = {}
        self._alive = False

    async def start(self) -> None:
        """Come up at once."""
        self._alive = True

    async def stop(self) -> None:
        """Forget everything."""
        self._alive = False
        self.loaded.clear()

    async def check(self) -> None:
        """Raise EngineDead unless started."""
        if not self._alive:
            raise EngineDead

    async def load(self, adapter: EngineAdapter) -> None:
        """Refuse what a test put into `refused` and what has no weights; refuse to hold more than the limits."""
        await self.check()
        if adapter.name in self.refused or not (adapter.path / "adapter_model.safetensors").is_file():
            self.events.append(("refused", adapter.name))
            raise Rejected([Problem(ProblemCode.WEIGHTS_INVALID, "The engine could not load the adapter.")])
        assert len(self.loaded) < self.limits.max_cpu_loras, "the service loads more than the engine can hold"  # noqa: S101 (an invariant of the port)
        self.loaded[adapter.name] = adapter
        self.events.append(("load", adapter.name))

    async def unload(self, adapter: EngineAdapter) -> None:
        """Forget it; an error in the caller if a request still runs on it."""
        assert not self.running.get(adapter.name), "unloaded under a running request"  # noqa: S101 (an invariant of the port)
        if self.loaded.pop(adapter.name, None):
            self.events.append(("unload", adapter.name))

    async def prove(self, adapter: EngineAdapter) -> Proof:
        """Answer what a test put into `proofs`, else that all is well."""
        await self.check()
        assert adapter.name in self.loaded, "proven before it was loaded"  # noqa: S101 (an invariant of the port)
        return self.proofs.get(adapter.name, Proof(adapter.modules, finite=True, differs=True))

    async def resident(self) -> Mapping[str, str]:
        """The last `max_loras` that were loaded sit in slots, the others in memory."""
        names = list(self.loaded)
        slots = set(names[-self.limits.max_loras :])
        return {name: "gpu" if name in slots else "cpu" for name in names}

    async def run(self, operation: str, call: Call) -> Reply:
        """Echo: `NAME: the words of the prompt`, cut at max_tokens words."""
        await self.check()
        if self._gate:
            self._gate.check()
        body = call.body
        chat = operation == CHAT.name
        prompt = body.messages[-1].content if chat else body.prompt
        speaker = call.adapter.name if call.adapter else "base"
        words = f"{speaker}: {prompt}".split()
        finish = "length" if len(words) > body.max_tokens else "stop"
        call.usage.prompt_tokens = len(prompt.split())
        answer = self._admitted(self._speak(speaker, words[: body.max_tokens], call), call)
        if body.stream:
            return Reply(stream=_events(answer, body.model, finish, chat=chat))
        text = " ".join([word async for word in answer])
        return Reply(body=_whole(text, body.model, finish, call, chat=chat))

    def metrics(self) -> bytes:
        """One series, so that joining is tested."""
        return f"# TYPE echo_adapters gauge\necho_adapters {len(self.loaded)}\n".encode()

    async def _admitted(self, words: AsyncGenerator[str, None], call: Call) -> AsyncGenerator[str, None]:
        lane = call.adapter.name if call.adapter else ""
        async with AsyncExitStack() as stack:
            entrance = self._gate.admit(lane, call.usage.prompt_tokens, 1, id(call)) if self._gate else None
            admitted = await stack.enter_async_context(entrance) if entrance else None
            await stack.enter_async_context(aclosing(words))
            async for word in words:
                if admitted:
                    admitted.spoke(1)
                yield word

    async def _speak(self, speaker: str, words: Sequence[str], call: Call) -> AsyncGenerator[str, None]:
        assert call.adapter is None or speaker in self.loaded, "run on an adapter that isn't loaded"  # noqa: S101 (an invariant of the port)
        began = time.monotonic()
        self.running[speaker] = self.running.get(speaker, 0) + 1
        said = 0
        try:
            for word in words:
                await self.steps.wait()
                await asyncio.sleep(0)
                if call.usage.time_to_first_token is None:
                    call.usage.time_to_first_token = time.monotonic() - began
                call.usage.completion_tokens += 1
                yield word
                said += 1
        finally:
            self.running[speaker] -= 1
            if said < len(words):
                self.events.append(("abort", speaker))


def _choice(text: str, finish: str | None, key: str, *, chat: bool) -> dict[str, Any]:
    content = {key: {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


def _envelope(kind: str, model: str | None, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "echo", "object": kind, "created": 0, "model": model or OWNER, "choices": [choice]}


def _whole(text: str, model: str | None, finish: str, call: Call, *, chat: bool) -> dict[str, Any]:
    kind = "chat.completion" if chat else "text_completion"
    usage = call.usage
    return _envelope(kind, model, _choice(text, finish, "message", chat=chat)) | {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
    }


async def _events(
    words: AsyncGenerator[str, None], model: str | None, finish: str, *, chat: bool
) -> AsyncIterator[str]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    gap = ""
    async with aclosing(words):
        async for word in words:
            yield f"data: {json.dumps(_envelope(kind, model, _choice(gap + word, None, 'delta', chat=chat)))}\n\n"
            gap = " "
    yield f"data: {json.dumps(_envelope(kind, model, _choice('', finish, 'delta', chat=chat)))}\n\n"
    yield "data: [DONE]\n\n"
