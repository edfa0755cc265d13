"""A stream's chunks: vLLM's own, and between its first and its last ones cut from the same mould.

vLLM builds and dumps two models for every token. Yet the chunks of a plain stream differ in nothing but their text, so
here vLLM's generator writes the first of them, ours fill its mould with the texts that follow, and vLLM's writes the
rest: finish, usage, errors. Whatever is not plain (log-probabilities, token ids, usage in every chunk, parsed tools)
is vLLM's from beginning to end.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

NOTHING_ELSE = re.compile(r'\}?(,"\w+":null)*\}\]\}\n\n')
"""How a plain chunk goes on after its text."""


@dataclass(frozen=True, slots=True)
class Mould:
    """A plain chunk without its text."""

    head: str
    tail: str

    @classmethod
    def of(cls, chunk: str, key: str, text: str) -> Mould | None:
        """From a chunk that says `text` under `key` and nothing else; None from any other.

        Inside of strings JSON escapes quotation marks, so that the key is found where it is a key.
        """
        head, found, tail = chunk.rpartition(key + quoted(text))
        return cls(head + key, tail) if found and NOTHING_ELSE.fullmatch(tail) else None

    def fill(self, text: str) -> str:
        """The chunk that says `text`."""
        return f"{self.head}{quoted(text)}{self.tail}"


class Turns:
    """One prompt's outputs, of which vLLM's generator and ours read some each, in turn.

    Iterating is vLLM's turn. `source` yields whatever `output_of` finds the output in.
    """

    def __init__(self, source: AsyncGenerator[Any, None], output_of: Callable[[Any], Any]) -> None:
        self._source = source
        self._output_of = output_of
        self._skipped: list[int] = []
        self._next: Any = None
        self.text: str | None = None
        """What the output says that vLLM's generator was given last."""

    def __aiter__(self) -> Turns:
        """Begin vLLM's turn."""
        return self

    async def __anext__(self) -> Any:
        """The next one for vLLM's generator, with the tokens of those it hasn't seen, since it counts them."""
        item, self._next = self._next, None
        if isinstance(item, Exception):
            raise item
        if item is None:
            item = await anext(self._source)
        (choice,) = self._output_of(item).outputs
        if self._skipped:
            choice.token_ids = [*self._skipped, *choice.token_ids]
            self._skipped = []
        self.text = choice.text
        return item

    async def fill(self, mould: Mould) -> AsyncGenerator[str, None]:
        """Our turn: chunks up to the first output or error that vLLM's generator has to see."""
        output_of, skip = self._output_of, self._skipped.extend
        try:
            async for item in self._source:
                (choice,) = output_of(item).outputs
                if choice.finish_reason is not None:
                    self._next = item
                    return
                skip(choice.token_ids)
                yield mould.fill(choice.text)
        except Exception as error:  # noqa: BLE001 (raised in vLLM's turn, so that its generator makes an event of it)
            self._next = error


async def stream(
    generator: Callable[[Turns], AsyncGenerator[str, None]], turns: Turns, key: str
) -> AsyncGenerator[str, None]:
    """The chunks of a stream of one choice; `generator` is vLLM's, `key` stands before the text in its chunks."""
    async with aclosing(generator(turns)) as theirs:
        mould = None
        async for chunk in theirs:
            yield chunk
            if turns.text is not None and (mould := Mould.of(chunk, key, turns.text)):
                break
        if mould:
            async with aclosing(turns.fill(mould)) as ours:
                async for chunk in ours:
                    yield chunk
            async for chunk in theirs:
                yield chunk
