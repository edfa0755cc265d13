"""A stream's chunks are vLLM's own, byte for byte, whoever wrote them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="no engine: install the cpu or the gpu extra")
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from service.engine import chunks
from service.engine.openai_layer import cut_plain_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [pytest.mark.engine, pytest.mark.anyio]

TEXTS = ["", "a", '"text":"', '\\"', "\n\r\t\b\f", "\x00\x1f\x7f", "é", "\u2028", "🏴\u200d☠️", '"delta":{"content":"x']
FINISHES = [("stop", None), ("stop", "###"), ("stop", 42), ("length", None), ("abort", None), ("error", None)]


def handler(kind: type) -> Any:
    """vLLM's, without the engine that its stream generators don't ask."""
    made = object.__new__(kind)
    made.enable_force_include_usage = False
    made.enable_prompt_tokens_details = True
    made.enable_per_request_metrics = False
    made.enable_log_outputs = False
    made.request_logger = None
    made.log_error_stack = False
    made.system_fingerprint = "fp"
    made.return_tokens_as_token_ids = False
    made.response_role = "assistant"
    made.parser_cls = None
    made._include_reasoning_tokens_details = False
    return made


def output(text: str, tokens: list[int], finish: str | None = None, reason: int | str | None = None) -> RequestOutput:
    logprobs = [{token: Logprob(-0.5, 1, text)} for token in tokens]
    choice = CompletionOutput(0, text, tokens, None, logprobs, finish_reason=finish, stop_reason=reason)
    return RequestOutput("r", "prompt", [7, 8, 9], None, [choice], finish is not None, num_cached_tokens=1)


def outputs_of(texts: list[str], finish: tuple[str, int | str | None]) -> list[RequestOutput]:
    *first, last = texts
    return [output(text, [number]) for number, text in enumerate(first)] + [output(last, [99], *finish)]


async def source(outputs: list[Any], wrap: Callable[[Any], Any]) -> AsyncIterator[Any]:
    for item in outputs:
        if isinstance(item, Exception):
            raise item
        yield wrap(item)


def completions(ours: bool, outputs: list[Any], **fields: Any) -> AsyncIterator[str]:
    completion = handler(OpenAIServingCompletion)
    if ours:
        cut_plain_chunks(completion, handler(OpenAIServingChat))
    request = CompletionRequest(model='a "name"', prompt="prompt", stream=True, max_tokens=9, **fields)
    found = source(outputs, lambda item: (0, item))
    tokenizer = SimpleNamespace(decode=str)
    return completion.completion_stream_generator(
        request, [{}], found, "cmpl-1", 5, request.model, num_prompts=1, tokenizer=tokenizer,
        request_metadata=RequestResponseMetadata(request_id="1"),
    )  # fmt: skip


def chats(ours: bool, outputs: list[Any], **fields: Any) -> AsyncIterator[str]:
    chat = handler(OpenAIServingChat)
    if ours:
        cut_plain_chunks(handler(OpenAIServingCompletion), chat)
    messages = [{"role": "user", "content": "hi"}]
    request = ChatCompletionRequest(model='a "name"', messages=messages, stream=True, **fields)
    found = source(outputs, lambda item: item)
    tokenizer = SimpleNamespace(decode=str)
    metadata = RequestResponseMetadata(request_id="1")
    return chat.chat_completion_stream_generator(request, found, "chatcmpl-1", request.model, [], tokenizer, metadata)


async def read(stream: AsyncIterator[str]) -> list[str]:
    # The one thing in a chunk that isn't the request's: the second it was begun in.
    return [chunk.replace(f'"created":{_created(chunk)}', '"created":0') for chunk in [part async for part in stream]]


def _created(chunk: str) -> int | None:
    body = chunk.removeprefix("data: ").strip()
    return None if body == "[DONE]" else json.loads(body).get("created")


ROUTES = pytest.mark.parametrize("route", [completions, chats])
texts = st.lists(st.text(max_size=8), min_size=1, max_size=6)


@ROUTES
@given(texts=texts, finish=st.sampled_from(FINISHES))
@example(texts=TEXTS, finish=FINISHES[0])
@example(texts=["only"], finish=FINISHES[1])
@settings(max_examples=50, deadline=None)
def test_every_text_and_every_end_is_written_as_vllm_writes_it(route, texts, finish):
    async def both() -> tuple[list[str], list[str]]:
        made = [outputs_of(texts, finish) for _ in range(2)]
        return await read(route(True, made[0])), await read(route(False, made[1]))

    ours, theirs = asyncio.run(both())
    assert ours == theirs


@ROUTES
@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"return_token_ids": True},
        {"logprobs": True, "top_logprobs": 1},
        {"echo": True},
    ],
)
async def test_every_field_is_honoured_as_vllm_honours_it(route, fields):
    if route is completions and "logprobs" in fields:
        fields = {"logprobs": 1}
    ours = await read(route(True, outputs_of(TEXTS, FINISHES[0]), **fields))
    theirs = await read(route(False, outputs_of(TEXTS, FINISHES[0]), **fields))
    assert ours == theirs


async def test_the_usage_counts_the_tokens_of_chunks_that_vllm_has_not_written():
    stream = completions(True, outputs_of(["a", "b", "c"], FINISHES[0]), stream_options={"include_usage": True})
    *_, usage, _ = await read(stream)
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 3


@ROUTES
@pytest.mark.parametrize("after", [0, 1, 2, 5])
async def test_an_error_in_the_middle_is_the_event_that_vllm_makes_of_it(route, after):
    def broken() -> list[Any]:
        return [*(output(text, [1]) for text in "abcde"[:after]), ValueError("broken")]

    ours, theirs = await read(route(True, broken())), await read(route(False, broken()))
    assert ours == theirs
    assert "broken" in ours[-2]
    assert ours[-1] == "data: [DONE]\n\n"


@ROUTES
async def test_a_lone_surrogate_cannot_be_sent_by_either(route):
    """vLLM makes an error of it when it dumps the chunk, ours when it is encoded to be sent."""
    with pytest.raises(UnicodeEncodeError):
        "".join(await read(route(True, outputs_of(["a", "\ud800", "b"], FINISHES[0])))).encode()
    theirs = await read(route(False, outputs_of(["a", "\ud800", "b"], FINISHES[0])))
    assert "error" in theirs[-2]


@ROUTES
async def test_plain_chunks_do_not_pass_vllms_generator(route, monkeypatch):
    filled = []
    fill = chunks.Mould.fill
    monkeypatch.setattr(chunks.Mould, "fill", lambda mould, text: filled.append(text) or fill(mould, text))
    await read(route(True, outputs_of(["a", "b", "c", "d"], FINISHES[0])))
    assert filled == ["b", "c"]
    filled.clear()
    await read(route(True, outputs_of(["a", "b", "c", "d"], FINISHES[0]), return_token_ids=True))
    assert filled == []


async def test_leaving_in_the_middle_ends_vllms_generator_too():
    closed = asyncio.Event()

    async def theirs(turns: chunks.Turns) -> AsyncIterator[str]:
        try:
            async for _ in turns:
                yield 'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
        finally:
            closed.set()

    turns = chunks.Turns(source([output("a", [1])] * 9, lambda item: item), lambda item: item)
    stream = chunks.stream(theirs, turns, '"text":')
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    assert closed.is_set()
