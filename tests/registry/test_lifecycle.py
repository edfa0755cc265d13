"""The life of one version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.registry.lifecycle import SERVABLE, Event, IllegalTransition, State, advance, may


class Life(RuleBasedStateMachine):
    """Any sequence of events that the machine allows."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STAGED
        self.proven = False
        self.failed = False

    @precondition(lambda self: any(may(self.state, event) for event in Event))
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from([event for event in Event if may(self.state, event)]))
        self.state = advance(self.state, event)
        self.proven |= event is Event.PROVE
        self.failed |= event is Event.FAIL

    @rule(event=st.sampled_from(Event))
    def refuse(self, event: Event) -> None:
        if not may(self.state, event):
            with pytest.raises(IllegalTransition):
                advance(self.state, event)

    @invariant()
    def nothing_unproven_is_served(self) -> None:
        assert self.proven or self.state not in SERVABLE

    @invariant()
    def a_failure_is_final(self) -> None:
        assert self.failed == (self.state is State.FAILED)


TestLife = Life.TestCase


@given(st.lists(st.sampled_from(Event)))
def test_a_version_drains_only_after_it_was_active(events):
    state, was_active = State.STAGED, False
    for event in events:
        if may(state, event):
            state = advance(state, event)
        was_active |= state is State.ACTIVE
        assert state is not State.DRAINING or was_active
