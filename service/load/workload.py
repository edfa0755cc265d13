"""What a server is asked in one round: who, how often, how long, by how many clients."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from service.load.question import Question

if TYPE_CHECKING:
    from collections.abc import Sequence

Mix = Literal["even", "uniform", "zipf"]

WORDS: Final = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also did many off before must well back through years much where your way down"
)
"""Words that are one token each in the usual vocabularies, so that no tokenizer is needed to know a prompt's length."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A round's requests. Prompts are random words, so that no two share a prefix that a server could have cached."""

    models: tuple[str, ...]
    clients: int = 16
    requests: int = 16
    prompt_tokens: int = 16
    max_tokens: int = 64
    mix: Mix = "even"
    """`even`: in turn; `uniform`: at random; `zipf`: the n-th model is asked 1/n times as often as the first."""
    stream: bool = True
    ignore_eos: bool = True
    chat: bool = False

    def questions(self, seed: str) -> list[Question]:
        """The requests of one round, in order: the same for the same seed, with other prompts for another."""
        choose = random.Random(seed)  # noqa: S311 (a load, not a secret)
        return [
            Question(model, self._prompt(choose), self.max_tokens, self.stream, self.ignore_eos, self.chat)
            for model in draw(self.models, self.mix, self.requests, choose)
        ]

    def first_questions(self, seed: str) -> list[Question]:
        """One short request to every model, so that all are in the server's memory before anything is measured."""
        choose = random.Random(seed)  # noqa: S311 (a load, not a secret)
        return [
            Question(model, self._prompt(choose), 1, self.stream, self.ignore_eos, self.chat) for model in self.models
        ]

    def _prompt(self, choose: random.Random) -> str:
        return " ".join(choose.choices(WORDS.split(), k=self.prompt_tokens))


def draw(models: Sequence[str], mix: Mix, count: int, choose: random.Random) -> list[str]:
    """Whom `count` requests ask."""
    if mix == "even":
        return [models[number % len(models)] for number in range(count)]
    weights = [1 / (place if mix == "zipf" else 1) for place in range(1, len(models) + 1)]
    return choose.choices(models, weights, k=count)
