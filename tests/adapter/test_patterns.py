from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapter.patterns import TABLE_LIMIT, Patterns, unacceptable_key

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10, 29)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
]
real_keys = st.sampled_from(
    [
        "q_proj",
        "self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "^model.layers.1.mlp.up_proj",
        r"^model\.layers\.10\.self_attn\.k_proj",
        r".*\.q_proj",
        r"layers\.\d+\.mlp.*",
        r"layers\.[0-9]+\.self_attn\.(q_proj|k_proj)",
        r"layers\.(0|1|29)\.mlp\.up_proj",
        "q_proj|k_proj",
        r"layers\.1.\..*",
        "(?:q|k)_proj",
        "_proj",
        "nothing",
    ]
)


def as_peft_does(table: dict[str, int], module: str) -> int | None:
    return next((value for key, value in table.items() if re.match(rf"(.*\.)?({key})$", module)), None)


@given(st.dictionaries(real_keys, st.integers(1, 64)), st.sampled_from(MODULES))
def test_finds_what_peft_finds(table: dict[str, int], module: str) -> None:
    assert unacceptable_key(table) is None
    assert Patterns(table).find(module) == as_peft_does(table, module)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+",
        "(a|a)*b",
        "((a))",
        "(?=a)",
        "(?P<name>a)",
        r"(a)\1",
        "a**",
        "a*b*c*d*",
        ".?" * 40,
        "(.|..)" * 30,
        "a{1000000}",
        ".{0,99}.{0,99}.{0,99}",
        "[a",
        "a" * 300,
        "a\nb",
        "[z-a]",
        "a{5,2}",
    ],
)
def test_keys_that_could_take_for_ever_are_refused(key: str) -> None:
    assert unacceptable_key({"q_proj": 1, key: 2}) == key


def test_a_table_has_an_end() -> None:
    assert unacceptable_key({f"module.{number}": 1 for number in range(TABLE_LIMIT)}) is None
    assert unacceptable_key({f"module.{number}": 1 for number in range(TABLE_LIMIT + 1)}) == f"module.{TABLE_LIMIT}"
    assert unacceptable_key({f"a.*{number}.*": 1 for number in range(100)}) == "a.*9.*"


@given(st.dictionaries(st.text(max_size=30), st.integers()))
def test_any_key_is_judged_and_an_acceptable_one_is_an_expression(table: dict[str, int]) -> None:
    if unacceptable_key(table) is None:
        assert Patterns(table).find("\n") is None or "" in table
