"""The life of one version, as a state machine without I/O.

A version is staged when its files are in the store, proven when the engine has served it, active while its name
points at it, draining while requests that began on it still run, retired when none does. A restart brings a
version whose proof no longer holds back to staged; one that fails its proof is never served.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a version stands."""

    STAGED = "staged"
    PROVEN = "proven"
    ACTIVE = "active"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a version."""

    PROVE = "prove"
    FAIL = "fail"
    PROMOTE = "promote"
    SHELVE = "shelve"
    """Proven, and not the one its name points at: it is kept, for whoever asks for it by number."""
    DEMOTE = "demote"
    DRAINED = "drained"


_NEXT: dict[tuple[State, Event], State] = {
    (State.STAGED, Event.PROVE): State.PROVEN,
    (State.STAGED, Event.FAIL): State.FAILED,
    (State.PROVEN, Event.PROMOTE): State.ACTIVE,
    (State.PROVEN, Event.SHELVE): State.RETIRED,
    (State.PROVEN, Event.FAIL): State.FAILED,
    (State.ACTIVE, Event.DEMOTE): State.DRAINING,
    (State.DRAINING, Event.PROMOTE): State.ACTIVE,
    (State.DRAINING, Event.DRAINED): State.RETIRED,
    (State.RETIRED, Event.PROMOTE): State.ACTIVE,
}

SERVABLE = frozenset({State.ACTIVE, State.DRAINING, State.RETIRED})
"""States in which a request may run on a version: whatever has been proven and admitted."""


class IllegalTransition(Exception):
    """A mistake of ours, never of a client: the machine has no such edge."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"a version that is {state} can't {event}")


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises IllegalTransition where the machine has no such edge."""
    try:
        return _NEXT[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None


def may(state: State, event: Event) -> bool:
    """Whether `advance` has an answer."""
    return (state, event) in _NEXT
