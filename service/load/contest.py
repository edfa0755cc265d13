"""One server's rounds, or those of two in turns, so that what slows the machine or the way there slows both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.errors import ConfigurationError
from service.load.drive import drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.load.drive import Run
    from service.load.server import Server
    from service.load.workload import Workload


@dataclass
class Side:
    """A server, and what was measured on it round by round."""

    server: Server
    runs: list[Run] = field(default_factory=list)


@dataclass(frozen=True)
class Contest:
    """Sides that are asked for the same."""

    sides: tuple[Side, ...]
    workload: Workload
    seed: str

    async def warm_up(self) -> None:
        """Ask every model of every side once. Raises ConfigurationError when one of them has no sound answer."""
        for place, side in enumerate(self.sides):
            questions = self.workload.first_questions(f"{self.seed} first {place}")
            run = await drive(side.server, questions, self.workload.clients)
            for answer in run.answers:
                if answer.failure:
                    raise ConfigurationError(f"{answer.model} at {side.server.url} doesn't answer: {answer.failure}")

    async def run(
        self,
        rounds: int,
        *,
        begun: Callable[[int, Side], None] = lambda _number, _side: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """Give each side a turn in every round; who begins changes. A round that was broken off leaves nothing."""
        for number in range(rounds):
            taken = []
            for step in range(len(self.sides)):
                place = (number + step) % len(self.sides)
                side = self.sides[place]
                begun(number, side)
                questions = self.workload.questions(f"{self.seed} {number}", str(place))
                clients, seconds = self.workload.clients, self.workload.seconds
                taken.append((side, await drive(side.server, questions, clients, seconds=seconds, answered=answered)))
            for side, run in taken:
                side.runs.append(run)
