"""An exchange, read: how many tokens came, and when; or why it doesn't count."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h11

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.load.exchange import Exchange
    from service.load.question import Question

OK = 200
SHOWN = 200
"""Characters of an error that are kept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to."""

    model: str
    began: float
    ended: float
    tokens: int = 0
    prompt_tokens: int = 0
    arrivals: tuple[float, ...] = ()
    """When something new arrived: tokens that came in one piece came at once. Empty if it wasn't streamed."""
    failure: str | None = None

    @property
    def first_token(self) -> float | None:
        """Seconds until something arrived; None if it wasn't streamed or isn't sound."""
        return self.arrivals[0] - self.began if self.arrivals and not self.failure else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between arrivals; none if it isn't sound."""
        return [] if self.failure else [later - earlier for earlier, later in pairwise(self.arrivals)]

    @property
    def each_token(self) -> float | None:
        """Seconds a token after the first took, on average."""
        if self.failure or not self.arrivals or self.tokens <= 1:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


class _Unsound(Exception):
    """The answer is an error, or isn't whole."""


@dataclass
class _Reading:
    tokens: int = 0
    prompt_tokens: int = 0
    events: int = 0
    arrivals: list[float] = field(default_factory=list)
    done: bool = False


def read(exchange: Exchange) -> Answer:
    """Take an exchange apart. An answer that is short of a token, or breaks off, is a failure."""
    question = exchange.question
    reading = _Reading()
    failure = exchange.broken
    try:
        if not failure:
            _read(exchange, reading)
            _hold_to(question, reading)
    except (_Unsound, h11.RemoteProtocolError, ValueError, KeyError, TypeError, AttributeError) as error:
        failure = str(error) or type(error).__name__
    return Answer(
        question.model,
        exchange.began,
        exchange.ended,
        reading.tokens,
        reading.prompt_tokens,
        tuple(reading.arrivals),
        failure,
    )


def _read(exchange: Exchange, reading: _Reading) -> None:
    pieces = _pieces(exchange)
    if not exchange.question.stream:
        whole = json.loads(b"".join(data for _, data in pieces))
        _count(whole["usage"], reading)
        reading.done = True
        return
    for moment, events in _events(pieces):
        fresh = [event for event in events if _take(event, reading)]
        if fresh:
            reading.events += len(fresh)
            reading.arrivals.append(moment)
    reading.tokens = reading.tokens or reading.events


def _hold_to(question: Question, reading: _Reading) -> None:
    if not reading.done:
        raise _Unsound("the stream broke off")
    if question.ignore_eos and reading.tokens != question.max_tokens:
        raise _Unsound(f"{reading.tokens} tokens instead of {question.max_tokens}")


def _pieces(exchange: Exchange) -> Iterator[tuple[float, bytes]]:
    """The body as it arrived. Raises _Unsound when the status isn't OK, h11's error when it isn't whole."""
    connection, status, refusal, moment = exchange.connection, OK, b"", exchange.ended
    for moment, data in (*exchange.arrivals, (exchange.ended, b"")):
        connection.receive_data(data)
        while not isinstance(event := connection.next_event(), h11.PAUSED | h11.NEED_DATA):
            match event:
                case h11.Response():
                    status = event.status_code
                case h11.Data() if status == OK:
                    yield moment, bytes(event.data)
                case h11.Data():
                    refusal += bytes(event.data)
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    break
                case _:
                    pass
    if status != OK:
        raise _Unsound(f"{status}: {refusal.decode(errors='replace')[:SHOWN]}")


def _events(pieces: Iterator[tuple[float, bytes]]) -> Iterator[tuple[float, list[bytes]]]:
    """The data of the events that each piece completed."""
    rest = b""
    for moment, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        yield moment, [line[5:].strip() for line in lines if line.startswith(b"data:")]


def _take(event: bytes, reading: _Reading) -> bool:
    """Whether an event brought something to read; what it says about the whole is noted."""
    if event == b"[DONE]":
        reading.done = True
        return False
    chunk = json.loads(event)
    if error := chunk.get("error"):
        raise _Unsound(json.dumps(error)[:SHOWN])
    if usage := chunk.get("usage"):
        _count(usage, reading)
    return any(_says(choice) for choice in chunk.get("choices", ()))


def _says(choice: dict[str, Any]) -> bool:
    """Whether a choice brings a token. One may have no text; but an opening or a closing without text is no token."""
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else delta.get("content") or delta.get("reasoning")
    return bool(text) or not (choice.get("finish_reason") or (delta is not None and "role" in delta))


def _count(usage: dict[str, Any], reading: _Reading) -> None:
    reading.tokens, reading.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
