"""What a server is asked in one round: who, how often, how long, by how many clients."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from service.load.question import Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    requests: int | None = 16
    """None: as many as are answered in `seconds`."""
    seconds: float | None = None
    """After so long no request is begun any more; those that run are waited for."""
    prompt_tokens: int = 16
    max_tokens: int = 64
    mix: Mix = "even"
    """`even`: in turn; `uniform`: at random; `zipf`: the n-th model is asked 1/n times as often as the first."""
    stream: bool = True
    ignore_eos: bool = True
    chat: bool = False

    def questions(self, seed: str, asked: str = "") -> Iterator[Question]:
        """The requests of one round. `seed` says which models they ask, `seed` and `asked` together which prompts.

        So two servers are asked for the same models in the same order, and still neither the other's prompts, which
        would be in the cache where both addresses lead to one server.
        """
        prompts = self._prompts(f"{seed} {asked}")
        models = draw(self.models, self.mix, random.Random(seed))  # noqa: S311 (a load, not a secret)
        for model, prompt in itertools.islice(zip(models, prompts, strict=False), self.requests):
            yield self._question(model, prompt, self.max_tokens)

    def first_questions(self, seed: str) -> Iterator[Question]:
        """One short request to every model, so that all are in the server's memory before anything is measured."""
        for model, prompt in zip(self.models, self._prompts(seed), strict=False):
            yield self._question(model, prompt, 1)

    def _question(self, model: str, prompt: str, max_tokens: int) -> Question:
        return Question(model, prompt, max_tokens, self.stream, self.ignore_eos, self.chat)

    def _prompts(self, seed: str) -> Iterator[str]:
        choose, words = random.Random(seed), WORDS.split()  # noqa: S311 (a load, not a secret)
        while True:
            yield " ".join(choose.choices(words, k=self.prompt_tokens))


def draw(models: Sequence[str], mix: Mix, choose: random.Random) -> Iterator[str]:
    """Whom one request after the other asks, without end."""
    if mix == "even":
        yield from itertools.cycle(models)
    weights = [1 / place if mix == "zipf" else 1.0 for place in range(1, len(models) + 1)]
    cumulated = list(itertools.accumulate(weights))
    while True:
        yield choose.choices(models, cum_weights=cumulated)[0]
