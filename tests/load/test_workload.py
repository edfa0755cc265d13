"""Who is asked what: the same for the same seed, and as often as the mix says."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.load.workload import Workload, draw

if TYPE_CHECKING:
    from service.load.workload import Mix

MODELS = tuple(f"m{number}" for number in range(8))
mixes = st.sampled_from(["even", "uniform", "zipf"])


@given(mix=mixes, requests=st.integers(1, 50), length=st.integers(1, 40), seed=st.text(max_size=5))
def test_a_round_is_as_long_as_asked_and_the_same_again(mix: Mix, requests: int, length: int, seed: str) -> None:
    workload = Workload(MODELS, requests=requests, prompt_tokens=length, mix=mix)
    questions = list(workload.questions(seed))
    assert questions == list(workload.questions(seed))
    assert len(questions) == requests
    assert {len(question.prompt.split()) for question in questions} == {length}


@given(mix=mixes, seed=st.text(max_size=5))
def test_two_servers_hear_the_same_names_and_other_prompts(mix: Mix, seed: str) -> None:
    workload = Workload(MODELS, requests=20, mix=mix)
    one, other = (list(workload.questions(seed, place)) for place in "01")
    assert [question.model for question in one] == [question.model for question in other]
    assert not {question.prompt for question in one} & {question.prompt for question in other}


def test_without_a_number_of_requests_there_is_no_end() -> None:
    endless = Workload(MODELS, requests=None, seconds=1).questions("")
    assert len(list(itertools.islice(endless, 5000))) == 5000


def test_every_model_is_asked_first() -> None:
    questions = list(Workload(MODELS, requests=1).first_questions("seed"))
    assert [question.model for question in questions] == list(MODELS)
    assert {question.max_tokens for question in questions} == {1}


def test_in_turn_every_model_is_asked_equally_often() -> None:
    drawn = Counter(itertools.islice(draw(MODELS, "even", random.Random(1)), 80))
    assert set(drawn.values()) == {10}


@pytest.mark.parametrize("mix", ["uniform", "zipf"])
def test_a_mix_is_what_it_is_called(mix: Mix) -> None:
    count = 40_000
    drawn = Counter(itertools.islice(draw(MODELS, mix, random.Random(1)), count))
    weights = [1 / place if mix == "zipf" else 1 for place in range(1, len(MODELS) + 1)]
    for model, weight in zip(MODELS, weights, strict=True):
        assert drawn[model] / count == pytest.approx(weight / sum(weights), rel=0.1)
