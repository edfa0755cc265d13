"""What clients may call a version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapter.spec import NAME
from service.registry.selector import NEAREST, Selector, nearest, parse

NAMES = st.from_regex(NAME, fullmatch=True)


@given(NAMES, st.integers(1, 9_999_999))
def test_a_number_has_at_most_seven_digits(name, number):
    assert parse(f"{name}@{number}") == Selector(name, number=number)


@given(NAMES, st.text("0123456789abcdef", min_size=8, max_size=64))
def test_a_digest_has_at_least_eight(name, digest):
    assert parse(f"{name}@{digest}") == Selector(name, digest=digest)
    assert parse(f"{name}@{digest.upper()}") == Selector(name, digest=digest)


@given(NAMES)
def test_a_name_alone_is_its_active_version(name):
    assert parse(name) == Selector(name)


@given(st.text(max_size=30))
def test_anything_else_is_none_or_is_spelt_as_one_of_these(text):
    found = parse(text)
    assert found is None or NAME.fullmatch(found.name)


@pytest.mark.parametrize(
    "text", ["", "@", "a@", "@1", "a@0", "a@01", "a@1.0", "a@12345678x", "a@abcdefg", "a@1@2", "a@" + "a" * 65]
)
def test_what_is_none_of_these(text):
    assert parse(text) is None


@given(st.text(max_size=50), st.lists(NAMES, max_size=20))
def test_the_nearest_are_few_and_known(model, names):
    found = nearest(model, names)
    assert set(found) <= set(names)
    assert len(found) == len(set(found)) <= NEAREST


def test_a_slip_is_understood():
    assert nearest("Pirat@3", ["cow", "pirate", "parrot"]) == ["pirate"]
