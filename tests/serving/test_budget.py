"""Which prompts enter: the budget holds, order is kept, nobody starves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.serving.budget import BASE, Budget, Limits, Ticket

LIMITS = Limits(tokens=100, sequences=8, slots=2, patience=5.0)
LANES = st.sampled_from([BASE, "a@1", "b@1", "c@1", "d@2"])


class BudgetMachine(RuleBasedStateMachine):
    """Any order of coming, speaking and leaving keeps the invariants of `Budget`."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(LIMITS)
        self.now = 0.0
        self.count = 0
        self.waiting: list[Ticket] = []
        self.entered: list[Ticket] = []
        self.silent: set[int] = set()

    def turn(self) -> None:
        for ticket in self.budget.admit(self.now):
            first = next(waiting for waiting in self.waiting if waiting.lane == ticket.lane)
            assert ticket == first, "a lane's order was broken"
            self.waiting.remove(ticket)
            self.entered.append(ticket)
            self.silent.add(ticket.id)

    @rule(lane=LANES, tokens=st.integers(1, 150), sequences=st.integers(1, 10))
    def come(self, lane: str, tokens: int, sequences: int) -> None:
        self.count += 1
        ticket = Ticket(self.count, lane, tokens, sequences, self.now)
        self.waiting.append(ticket)
        self.budget.join(ticket)
        self.turn()

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @precondition(lambda self: self.entered)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.entered))
        self.budget.spoke(ticket, 1)
        self.silent.discard(ticket.id)
        self.turn()

    @precondition(lambda self: self.entered or self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.entered + self.waiting))
        (self.entered if ticket in self.entered else self.waiting).remove(ticket)
        self.silent.discard(ticket.id)
        self.budget.leave(ticket)
        self.turn()

    @invariant()
    def tokens_stay_within_the_limit(self) -> None:
        in_flight = [ticket.tokens for ticket in self.entered if ticket.id in self.silent]
        assert self.budget.tokens_in_flight == sum(in_flight)
        assert sum(in_flight) <= LIMITS.tokens or len(in_flight) == 1

    @invariant()
    def waiting_is_counted(self) -> None:
        assert self.budget.tokens_waiting == sum(ticket.tokens for ticket in self.waiting)

    @invariant()
    def slots_are_kept(self) -> None:
        assert len({ticket.lane for ticket in self.entered} - {BASE}) <= LIMITS.slots

    @invariant()
    def sequences_stay_within_the_limit(self) -> None:
        assert sum(ticket.sequences for ticket in self.entered) <= LIMITS.sequences or len(self.entered) == 1

    @invariant()
    def an_empty_engine_leaves_nobody_waiting(self) -> None:
        assert self.entered or not self.waiting


TestBudget = BudgetMachine.TestCase


@given(st.lists(st.tuples(LANES, st.integers(1, 150), st.integers(1, 10)), min_size=1, max_size=60))
@settings(max_examples=50)
def test_everybody_enters_in_the_end(wishes: list[tuple[str, int, int]]) -> None:
    """When those who entered finish one after the other, everybody has had a turn."""
    budget = Budget(LIMITS)
    now = 0.0
    for number, (lane, tokens, sequences) in enumerate(wishes):
        budget.join(Ticket(number, lane, tokens, sequences, now))
    running, done = budget.admit(now), 0
    while running:
        now += 1.0
        ticket = running.pop(0)
        budget.spoke(ticket, 1)
        budget.leave(ticket)
        done += 1
        running += budget.admit(now)
    assert done == len(wishes)
    assert (budget.tokens_in_flight, budget.tokens_waiting) == (0, 0)


def simulate(budget: Budget, flood: str, quiet: list[str], seconds: int) -> dict[str, float]:
    """One lane that always has more to ask, others that ask once; each answer takes three seconds. Longest waits."""
    number, now, waits = 0, 0.0, dict.fromkeys(quiet, -1.0)
    running: list[tuple[float, Ticket]] = []
    for _ in range(50):
        number += 1
        budget.join(Ticket(number, flood, 10, 1, now))
    for second in range(seconds):
        now = float(second)
        if second == 2:
            for lane in quiet:
                number += 1
                budget.join(Ticket(number, lane, 10, 1, now))
        for end, ticket in list(running):
            if end <= now:
                running.remove((end, ticket))
                budget.leave(ticket)
                if ticket.lane == flood:
                    number += 1
                    budget.join(Ticket(number, flood, 10, 1, now))
        for ticket in budget.admit(now):
            if ticket.lane != flood:
                waits[ticket.lane] = now - ticket.arrived
            budget.spoke(ticket, 20)
            running.append((now + 3, ticket))
    return waits


def test_a_flood_does_not_starve_a_quiet_lane() -> None:
    """A quiet lane's prompt finds a place at once: no lane may take every sequence."""
    waits = simulate(Budget(LIMITS), "a@1", ["b@1"], 20)
    assert waits == {"b@1": 0.0}


def test_a_flood_gives_up_its_slot() -> None:
    """With one slot, or more lanes than slots, everybody's turn comes within the patience and a few answers."""
    one_slot = Limits(tokens=100, sequences=8, slots=1, patience=5.0)
    assert 0 <= simulate(Budget(one_slot), "a@1", ["b@1"], 40)["b@1"] <= 5 + 3 + 1
    waits = simulate(Budget(LIMITS), "a@1", ["b@1", "c@1", "d@1"], 60)
    assert all(0 <= wait <= 3 * 3 + 5 for wait in waits.values()), waits


def test_a_long_prompt_is_not_overtaken_for_ever() -> None:
    """Short prompts pass a long one while it can't fit, until it has waited longer than the patience."""
    budget = Budget(LIMITS)
    reading = Ticket(1, "a@1", 60, 1, 0.0)
    long = Ticket(2, "b@1", 90, 1, 0.0)
    budget.join(reading)
    budget.join(long)
    budget.join(Ticket(3, BASE, 30, 1, 0.0))
    assert [ticket.id for ticket in budget.admit(0.0)] == [1, 3]
    budget.join(Ticket(4, BASE, 10, 1, 1.0))
    assert budget.admit(6.0) == []
    budget.spoke(reading, 1)
    assert budget.admit(6.0) == []
    budget.leave(Ticket(3, BASE, 30, 1, 0.0))
    assert [ticket.id for ticket in budget.admit(6.0)] == [2, 4]
