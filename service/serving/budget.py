"""Which waiting prompts may enter the engine now: the token budget, fairness among adapters, adapter slots. Pure.

A lane is an adapter (or the base). Among lanes, the one that was served the fewest tokens goes first: the virtual
token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), which needs no guess of how
long an answer will be. Within a lane, and so within a request, order is kept. A prompt that has waited longer than
the patience goes before all others, and while it waits for an adapter slot the greediest lanes let nobody else in,
so that a slot comes free.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = ""
"""The lane of requests without an adapter; it needs no slot."""

LANE_SHARE = 0.75
"""The part of the engine's sequences one lane may take, so that a quiet one's prompt finds a place at once."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One prompt that wants to enter. Times in seconds of one clock."""

    id: int
    lane: str
    tokens: int
    """Prompt tokens, counted once for each answer that was asked for."""
    sequences: int
    arrived: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may hold at once."""

    tokens: int
    """Prompt tokens of those that have entered and not yet spoken."""
    sequences: int
    slots: int
    """Different adapters."""
    patience: float
    """Seconds after which a waiting prompt goes first."""


class Budget:
    """The waiting and the entered.

    Invariants, whatever is called in whatever order:

    - tokens in flight stay within the limit, unless a single prompt is above it, which then is alone;
    - no more than `slots` adapters are entered at a time;
    - a lane's prompts enter in the order they came.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tokens_in_flight = 0
        self.tokens_waiting = 0
        self._waiting: dict[str, deque[Ticket]] = {}
        self._entered: dict[int, Ticket] = {}
        self._reading: set[int] = set()
        """Entered tickets whose tokens are still in flight."""
        self._sequences: dict[str, int] = {}
        self._served: dict[str, float] = {}

    def join(self, ticket: Ticket) -> None:
        """Begin to wait."""
        if not self._active(ticket.lane):
            floor = min((self._served[lane] for lane in self._lanes()), default=0.0)
            self._served[ticket.lane] = max(self._served.get(ticket.lane, 0.0), floor)
        self._waiting.setdefault(ticket.lane, deque()).append(ticket)
        self.tokens_waiting += ticket.tokens

    def admit(self, now: float) -> list[Ticket]:
        """Let in whoever may enter at `now`, and return them in order."""
        entered = []
        while ticket := self._next(now):
            self._enter(ticket)
            entered.append(ticket)
        return entered

    def spoke(self, ticket: Ticket, tokens: int) -> int:
        """It has generated so many more tokens; with the first its prompt has been read. Returns what that frees."""
        self._served[ticket.lane] += tokens
        if ticket.id not in self._reading:
            return 0
        self._reading.discard(ticket.id)
        self.tokens_in_flight -= ticket.tokens
        return ticket.tokens

    def leave(self, ticket: Ticket) -> None:
        """It is done, or gives up, waiting or entered."""
        if ticket.id in self._entered:
            del self._entered[ticket.id]
            if ticket.id in self._reading:
                self._reading.discard(ticket.id)
                self.tokens_in_flight -= ticket.tokens
            self._sequences[ticket.lane] -= ticket.sequences
            if not self._sequences[ticket.lane]:
                del self._sequences[ticket.lane]
        else:
            self._waiting[ticket.lane].remove(ticket)
            self._waited(ticket)
        if not self._entered and not self._waiting:
            self._served.clear()

    def holds(self, ticket: Ticket) -> bool:
        """Whether it has entered."""
        return ticket.id in self._entered

    def _active(self, lane: str) -> bool:
        return lane in self._waiting or lane in self._sequences

    def _lanes(self) -> set[str]:
        return {*self._waiting, *self._sequences}

    def _enter(self, ticket: Ticket) -> None:
        self._waiting[ticket.lane].popleft()
        self._waited(ticket)
        self._entered[ticket.id] = ticket
        self._reading.add(ticket.id)
        self.tokens_in_flight += ticket.tokens
        self._sequences[ticket.lane] = self._sequences.get(ticket.lane, 0) + ticket.sequences
        self._served[ticket.lane] += ticket.tokens

    def _waited(self, ticket: Ticket) -> None:
        self.tokens_waiting -= ticket.tokens
        if not self._waiting[ticket.lane]:
            del self._waiting[ticket.lane]

    def _next(self, now: float) -> Ticket | None:
        closed = set(self._closed(now))
        heads = sorted(
            (queue[0] for queue in self._waiting.values()),
            key=lambda head: (not self._aged(head, now), self._served[head.lane], head.arrived),
        )
        for head in heads:
            if head.lane in closed or not self._has_slot(head.lane):
                continue
            if self._has_room(head):
                return head
            if self._aged(head, now):
                # Nobody younger takes the tokens or sequences that come free before this one has had its turn.
                return None
        return None

    def _aged(self, ticket: Ticket, now: float) -> bool:
        return now - ticket.arrived > self.limits.patience

    def _has_slot(self, lane: str) -> bool:
        return lane == BASE or lane in self._sequences or self._slots_taken() < self.limits.slots

    def _slots_taken(self) -> int:
        return len(self._sequences.keys() - {BASE})

    def _has_room(self, ticket: Ticket) -> bool:
        if not self._entered:
            return True
        limits = self.limits
        running = sum(self._sequences.values())
        of_lane = self._sequences.get(ticket.lane, 0)
        return (
            (self.tokens_in_flight + ticket.tokens <= limits.tokens or not self.tokens_in_flight)
            and running + ticket.sequences <= limits.sequences
            and (not of_lane or of_lane + ticket.sequences <= limits.sequences * LANE_SHARE)
        )

    def _closed(self, now: float) -> Iterator[str]:
        """The lanes that let nobody in, greediest first, one for each aged lane without a slot."""
        if self._slots_taken() < self.limits.slots:
            return
        starving = sum(
            lane != BASE and lane not in self._sequences and self._aged(queue[0], now)
            for lane, queue in self._waiting.items()
        )
        holders = sorted(self._sequences.keys() - {BASE}, key=lambda lane: self._served[lane], reverse=True)
        yield from holders[:starving]
