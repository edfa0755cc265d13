from __future__ import annotations

import json
from importlib.resources import files
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapter.names import Kinship, is_local, kinship

GROUPS = json.loads(files("service.adapter").joinpath("unsloth_names.json").read_text())["groups"]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"

groups = st.sampled_from(GROUPS)
words = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,3}", fullmatch=True)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["served_16bit"])
def test_names_of_one_group_denote_the_same_weights(group: dict[str, list[str]]) -> None:
    for ours, theirs in permutations(group["all_lower"], 2):
        assert kinship(theirs, ours) in {Kinship.SAME, Kinship.QUANTISED}
    for name in group["quantised"]:
        assert kinship(name, str(group["served_16bit"])) is Kinship.QUANTISED


@given(groups, groups, st.data())
def test_names_of_two_groups_never_do(
    one: dict[str, list[str]], other: dict[str, list[str]], data: st.DataObject
) -> None:
    ours, theirs = data.draw(st.sampled_from(one["all_lower"])), data.draw(st.sampled_from(other["all_lower"]))
    assert (kinship(theirs, ours) is Kinship.OTHER) == (one is not other)


@given(groups, st.data())
def test_case_says_nothing(group: dict[str, list[str]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(group["all_lower"]))
    assert kinship(name.upper(), name) is Kinship.SAME


@given(words, words)
def test_the_rule_for_names_nobody_listed(owner: str, leaf: str) -> None:
    base = f"vendor-{owner}/x{leaf}"
    for suffix, expected in (
        ("", Kinship.SAME),
        ("-bnb-4bit", Kinship.QUANTISED),
        ("-unsloth-bnb-4bit", Kinship.QUANTISED),
        ("-FP8-Dynamic", Kinship.QUANTISED),
    ):
        assert kinship(f"unsloth/x{leaf}{suffix}", base) is expected
        assert kinship(f"{base}{suffix}", base) is expected
        assert kinship(f"stranger/x{leaf}{suffix}", base) is Kinship.OTHER
    assert kinship(f"unsloth/x{leaf}x", base) is Kinship.OTHER


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "/content/drive/MyDrive/model",
        "./merged",
        "../merged",
        "~/models/mine",
        "C:\\models\\mine",
        "outputs/run-3",
        "my-run/checkpoint-500",
        "lora_model",
        "a/b/c",
        "unsloth/SmolLM2-360M-Instruct/extra",
    ],
)
def test_local_paths_say_nothing(name: str) -> None:
    assert is_local(name)
    assert kinship(name, BASE) is Kinship.UNKNOWN


def test_no_name_says_nothing() -> None:
    assert kinship(None, BASE) is Kinship.UNKNOWN


def test_a_path_in_the_hub_cache_is_a_name() -> None:
    path = "/root/.cache/huggingface/hub/models--unsloth--{}/snapshots/0123abcd"
    assert kinship(path.format("SmolLM2-135M-Instruct"), BASE) is Kinship.SAME
    assert kinship(path.format("SmolLM2-360M-Instruct"), BASE) is Kinship.OTHER


def test_a_base_known_by_its_directory_alone() -> None:
    """Agreement in the last part is all it can say; anything else is another model."""
    assert kinship("unsloth/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct") is Kinship.UNKNOWN
    assert kinship("unsloth/SmolLM2-135M-Instruct", "/models/smollm2-135m-instruct/") is Kinship.UNKNOWN
    assert kinship("unsloth/SmolLM2-135M-Instruct", "some-base") is Kinship.OTHER
    assert kinship("some-base", "some-base") is Kinship.SAME


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_judged(one: str, other: str) -> None:
    assert kinship(one, other) in Kinship
