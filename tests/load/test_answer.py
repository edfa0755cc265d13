"""From bytes on a socket to tokens and moments; and nothing that isn't whole passes for an answer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_server import END, HEAD, chunked, event, found, refused, scripted, spoken, token, usage

from service.load.answer import Answer, read
from service.load.exchange import exchange
from service.load.question import Question
from service.load.server import Server

if TYPE_CHECKING:
    from load_server import Script

pytestmark = pytest.mark.anyio


async def asked(script: Script, **question: Any) -> Answer:
    async with scripted(script) as server:
        return read(await exchange(server, Question("m", "Hi", **{"max_tokens": 3, **question}), 5))


def stream(*events: bytes) -> Script:
    return lambda _: [HEAD, *(chunked(data) for data in events), END]


async def test_a_stream_has_as_many_arrivals_as_pieces_with_tokens() -> None:
    answer = await asked(spoken, max_tokens=5)
    assert (answer.failure, answer.tokens, answer.prompt_tokens) == (None, 5, 3)
    assert len(answer.arrivals) == 5
    assert answer.first_token is not None
    assert 0 < answer.first_token <= answer.ended - answer.began
    assert len(answer.gaps) == 4
    assert answer.each_token == pytest.approx(sum(answer.gaps) / 4)


async def test_tokens_that_come_in_one_piece_arrive_at_once() -> None:
    answer = await asked(stream(event(token()) + event(token()), event(token()), event(usage(3)) + b"data: [DONE]\n\n"))
    assert (answer.tokens, len(answer.arrivals)) == (3, 2)


async def test_without_usage_events_are_counted() -> None:
    done = event(token("", "length")) + b"data: [DONE]\n\n"
    assert (await asked(stream(*[event(token())] * 3, done))).tokens == 3


async def test_a_token_may_have_no_text_but_a_chats_opening_is_none() -> None:
    opening = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    silent = {"choices": [{"delta": {"content": ""}, "finish_reason": None}]}
    said = {"choices": [{"delta": {"content": "word"}, "finish_reason": None}]}
    closing = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    events = [event(one) for one in (opening, said, silent, said, closing)]
    answer = await asked(stream(*events, b"data: [DONE]\n\n"), chat=True)
    assert (answer.failure, answer.tokens, len(answer.arrivals)) == (None, 3, 3)


async def test_a_whole_answer_has_tokens_and_no_first_one() -> None:
    whole = found({"usage": {"completion_tokens": 3, "prompt_tokens": 2}})
    answer = await asked(lambda _: [whole[:50], whole[50:]], stream=False)
    assert (answer.failure, answer.tokens, answer.first_token, answer.gaps) == (None, 3, None, [])


async def test_without_ignore_eos_an_answer_may_end_early() -> None:
    short = stream(event(token()), event(usage(1)), b"data: [DONE]\n\n")
    assert (await asked(short, ignore_eos=False)).failure is None
    assert (await asked(short)).failure == "1 tokens instead of 3"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda _: refused(b"429 Too Many Requests", "later"), "429: .*later"),
        (stream(event(token()), event({"error": {"message": "gone"}})), "gone"),
        (stream(event(token())), "broke off"),
        (lambda _: [HEAD, chunked(event(token()))], "peer closed"),
        (lambda _: [], ".+"),
        (lambda _: [b"SSH-2.0-none\r\n\r\n"], ".+"),
        (stream(b"data: {broken\n\n"), ".+"),
        (stream(event(["no object"])), ".+"),
    ],
    ids=["refused", "an error event", "no end", "no last chunk", "nothing", "no HTTP", "no JSON", "no object"],
)
async def test_what_is_not_whole_is_a_failure(script: Script, reason: str) -> None:
    answer = await asked(script)
    assert answer.failure is not None
    assert pytest.RaisesExc(Exception, match=reason).matches(Exception(answer.failure))
    assert (answer.first_token, answer.gaps, answer.each_token) == (None, [], None)


async def test_nobody_there_is_a_failure() -> None:
    async with scripted(spoken) as server:
        pass
    assert "connection failed" in (read(await exchange(server, Question("m", "Hi", 1), 5)).failure or "")


async def test_waiting_has_an_end() -> None:
    async with scripted(spoken) as server:
        assert read(await exchange(server, Question("m", "Hi", 100), 0.01)).failure == "it took too long"


@given(tokens=st.integers(1, 12), cuts=st.lists(st.integers(1, 2000), max_size=8))
async def test_how_the_bytes_are_cut_changes_nothing_but_the_moments(tokens: int, cuts: list[int]) -> None:
    whole = b"".join(spoken({"max_tokens": tokens}))
    edges = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    answer = await asked(lambda _: pieces, max_tokens=tokens)
    assert (answer.failure, answer.tokens) == (None, tokens)
    assert 1 <= len(answer.arrivals) <= tokens
    assert list(answer.arrivals) == sorted(answer.arrivals)


async def test_a_question_is_asked_as_openai_would_have_it() -> None:
    heard: list[dict[str, Any]] = []
    async with scripted(spoken, heard) as server:
        for how in ({}, {"chat": True}, {"ignore_eos": False}):
            await exchange(server, Question("m", "Hi", 2, **how), 5)
    plain = {"model": "m", "max_tokens": 2, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    assert heard[0] == plain | {"prompt": "Hi", "ignore_eos": True}
    assert heard[1] == plain | {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
    assert heard[2] == plain | {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://a", "a", ""),
        ("https://a/v1/", "a", ""),
        ("http://a:8000/openai/v1", "a:8000", "/openai"),
        ("http://[::1]:80/", "[::1]", ""),
        ("https://a:80", "a:80", ""),
    ],
)
def test_an_address(url: str, authority: str, prefix: str) -> None:
    server = Server.at(url)
    assert (server.authority, server.prefix) == (authority, prefix)
