"""One name's reference as a value."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.errors import Conflict, VersionNotFound
from service.registry.refs import FORMAT, MAX_VERSION, Failure, Offer, ProofStamp, Ref, Version, decode, encode

STAMP = ProofStamp("base", "bfloat16", 16, 1)
PROBLEM = Problem(ProblemCode.NOT_FINITE, "NaN", "lora_A", "Train again.")
WARNING = Problem(WarningCode.WEAK_EFFECT, "Weak.")


def version(number: int, digest: str = "a" * 64) -> Version:
    return Version(number, digest, 4, 100, 1.5, 2, STAMP, base="b", warnings=(WARNING,), stop_token_ids=(7,))


def published(count: int, keep: int = 5) -> Ref:
    ref = Ref("pirate")
    for _ in range(count):
        number = ref.next
        ref = ref.burn().publish(version(number), keep)
    return ref


class Names(RuleBasedStateMachine):
    """A reference beside the plainest account of what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.ref = Ref("pirate")
        self.numbers: list[int] = []
        self.active: int | None = None
        self.before: int | None = None
        self.given: set[int] = set()

    @rule(keep=st.integers(1, 4))
    def publish(self, keep: int) -> None:
        number = self.ref.next
        assert number not in self.given
        self.given.add(number)
        self.ref = self.ref.burn().publish(version(number), keep)
        self.before, self.active = self.active, number
        self.numbers = [*self.numbers, number][-keep:]
        assert self.ref.last_failure is None

    @rule()
    def burn(self) -> None:
        self.given.add(self.ref.next)
        self.ref = self.ref.burn()

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from(self.numbers))
        self.ref = self.ref.rollback(target)
        if target != self.active:
            self.before, self.active = self.active, target

    @rule()
    def rollback_to_the_one_before(self) -> None:
        if self.before in self.numbers:
            self.ref = self.ref.rollback()
            self.before, self.active = self.active, self.before
        else:
            with pytest.raises(Conflict):
                self.ref.rollback()

    @rule(number=st.integers(1, 30))
    def forget_a_version(self, number: int) -> None:
        if number == self.active:
            with pytest.raises(Conflict):
                self.ref.without(number)
        elif number not in self.numbers:
            with pytest.raises(VersionNotFound):
                self.ref.without(number)
        else:
            self.ref = self.ref.without(number)
            self.numbers.remove(number)

    @rule()
    def remove(self) -> None:
        self.ref = self.ref.remove(9.0)
        self.numbers, self.active, self.before = [], None, None
        assert not self.ref.listed

    @rule()
    def fail(self) -> None:
        self.ref = self.ref.fail(Failure(3.0, None, (PROBLEM,)))
        assert self.ref.listed

    @rule(source=st.sampled_from(["/a", "/b"]), digest=st.none() | st.just("b" * 64), refused=st.none() | st.just("x"))
    def offer(self, source: str, digest: str | None, refused: str | None) -> None:
        self.ref = self.ref.offered(source, Offer(digest, "stamp", refused))

    @invariant()
    def it_is_what_the_account_says(self) -> None:
        assert [v.number for v in self.ref.versions] == self.numbers
        assert self.ref.active == self.active
        assert self.ref.previous == (self.before if self.before in self.numbers else None)

    @invariant()
    def it_survives_being_written(self) -> None:
        assert decode(encode(self.ref)) == self.ref


TestNames = Names.TestCase


def test_the_newest_versions_are_kept_and_the_active_one_however_old():
    ref = published(4, keep=9).rollback(1)
    assert [v.number for v in ref.retain(2).versions] == [1, 3, 4]
    assert [v.number for v in published(7, keep=5).versions] == [3, 4, 5, 6, 7]


def test_a_rollback_forth_and_back_ends_where_it_began():
    ref = published(3)
    assert ref.rollback().active == 2
    assert ref.rollback().rollback() == ref
    assert ref.rollback(3) is ref


def test_a_tombstone_remembers_numbers_and_offers_and_asks_for_no_further_trial():
    ref = published(2).offered("/a", Offer("b" * 64, "s", refused="conditions")).remove(5.0)
    assert ref.next == 3
    assert ref.offers["/a"] == Offer("b" * 64, "s", None)


def test_numbers_end_before_they_look_like_digests():
    with pytest.raises(Conflict):
        Ref("pirate", next=MAX_VERSION + 1).burn()


@pytest.mark.parametrize(
    "change",
    [
        {"active": 9},
        {"active": None},
        {"previous": 9},
        {"next": 1},
        {"next": "x"},
        {"format": FORMAT + 1},
        {"removed": 1.0},
        {"versions": [{"number": 1}]},
        {"name": None},
    ],
)
def test_a_file_that_makes_no_sense_is_not_believed(change):
    whole = json.loads(encode(published(2)))
    with pytest.raises(ValueError, match=r".+"):
        decode(json.dumps(whole | change).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"{}"])
def test_a_torn_file_is_not_believed(text):
    with pytest.raises(ValueError, match=r".+"):
        decode(text)


def test_a_field_that_a_later_release_adds_is_read_over():
    whole = json.loads(encode(published(1)))
    assert decode(json.dumps(whole | {"colour": "red"}).encode()) == published(1)
