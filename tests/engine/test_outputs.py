"""A prompt's outputs from vLLM's collector on: counted, bounded in time, ended with whoever reads them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

pytest.importorskip("vllm", reason="no engine: install the cpu or the gpu extra")
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.stats import RequestStateStats

from service.engine.port import Call
from service.engine.vllm import Llm
from service.engine.work import Work
from service.errors import NotFinite, TimedOut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

pytestmark = [pytest.mark.engine, pytest.mark.anyio]
DELTAS = SamplingParams(output_kind=RequestOutputKind.DELTA)


class Engineless(Llm):
    """The engine client without an engine: what it would be sent is noted, what it would answer a test puts in."""

    def __init__(self) -> None:
        self.collector = RequestOutputCollector(RequestOutputKind.DELTA, "r")
        self.aborted: list[str] = []

    async def add_request(self, *_: Any, **__: Any) -> RequestOutputCollector:
        return self.collector

    async def abort(self, request_id: Any, internal: bool = False) -> None:
        self.aborted.append(request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        pass


class Entrance:
    """The gate's pass; counts what was said of it."""

    def __init__(self) -> None:
        self.tokens = 0
        self.inside = False

    def spoke(self, tokens: int) -> None:
        self.tokens += tokens

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Entrance]:
        self.inside = True
        try:
            yield self
        finally:
            self.inside = False


class Prompt:
    """One prompt that is being answered."""

    def __init__(self, timeout: float | None = None) -> None:
        self.llm = Engineless()
        self.entrance = Entrance()
        self.work = Work(Call(None, None), timeout)
        self.ended = asyncio.Event()
        outputs = self.llm._outputs(self.work, self.entrance.open(), self.ended, "prompt", DELTAS, "r")
        self.outputs: AsyncGenerator[RequestOutput, None] = self.work.add(outputs, self.ended)

    def say(self, *tokens: int, finished: bool = False, corrupted: bool = False) -> None:
        choice = CompletionOutput(0, "text", list(tokens), None, None, finish_reason="length" if finished else None)
        stats = RequestStateStats(first_token_latency=0.5, is_corrupted=corrupted)
        self.llm.collector.put(RequestOutput("r", None, [7, 8], None, [choice], finished, metrics=stats))

    def all_is_given_back(self) -> bool:
        return self.ended.is_set() and not self.entrance.inside


async def test_outputs_are_counted_as_they_pass():
    prompt = Prompt()
    prompt.say(1)
    await anext(prompt.outputs)
    prompt.say(2, 3)
    prompt.say(4, finished=True)  # merged with the one before, which nobody has read yet
    assert [len(output.outputs[0].token_ids) async for output in prompt.outputs] == [3]
    usage = prompt.work.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.time_to_first_token) == (2, 4, 0.5)
    assert prompt.entrance.tokens == 4
    assert prompt.llm.aborted == []
    assert prompt.all_is_given_back()


async def test_a_reader_that_leaves_takes_the_engines_request_along():
    prompt = Prompt()
    prompt.say(1)
    await anext(prompt.outputs)
    await prompt.work.close()
    assert prompt.llm.aborted == ["r"]
    assert prompt.all_is_given_back()


async def test_a_reader_that_is_cancelled_while_it_waits_does_too():
    prompt = Prompt()
    reading = asyncio.ensure_future(anext(prompt.outputs))
    await asyncio.sleep(0)
    reading.cancel()
    with anyio.fail_after(5):
        await prompt.work.close()
    assert prompt.llm.aborted == ["r"]
    assert prompt.all_is_given_back()


async def test_the_time_for_all_of_it_is_bounded():
    prompt = Prompt(timeout=0.02)
    prompt.say(1)
    await anext(prompt.outputs)
    with anyio.fail_after(5), pytest.raises(TimedOut):
        await anext(prompt.outputs)
    assert prompt.llm.aborted == ["r"]
    assert prompt.all_is_given_back()


@pytest.mark.parametrize(
    ("said", "raised"), [(EngineDeadError(), EngineDeadError), (RuntimeError("secret"), EngineGenerateError)]
)
async def test_what_the_engine_raises_is_raised_without_its_secrets(said, raised):
    prompt = Prompt()
    prompt.llm.collector.put(said)
    with pytest.raises(raised) as caught:
        await anext(prompt.outputs)
    assert "secret" not in str(caught.value)
    assert prompt.all_is_given_back()


async def test_an_answer_with_a_nan_in_it_is_none():
    prompt = Prompt()
    prompt.say(1, corrupted=True)
    with pytest.raises(NotFinite):
        await anext(prompt.outputs)
    assert prompt.work.usage.not_finite
    assert prompt.llm.aborted == ["r"]
