"""Two servers in turns: each hears the same, one at a time, and nothing is counted by half."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from load_server import refused, scripted, spoken

from service.errors import ConfigurationError
from service.load.contest import Contest, Side
from service.load.drive import drive
from service.load.report import FORMAT, Report
from service.load.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio
WORKLOAD = Workload(("a", "b"), clients=3, requests=6, max_tokens=4)


async def test_sides_take_turns_and_who_begins_changes() -> None:
    async with scripted(spoken) as one, scripted(spoken) as other:
        contest = Contest((Side(one), Side(other)), WORKLOAD, "seed")
        order: list[tuple[int, int]] = []
        await contest.run(3, begun=lambda number, side: order.append((number, contest.sides.index(side))))
    assert order == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]
    assert [len(side.runs) for side in contest.sides] == [3, 3]


async def test_while_one_is_asked_the_other_is_left_alone() -> None:
    running: list[int] = [0, 0]
    beside = []

    def counting(place: int) -> Any:
        def script(body: dict[str, Any]) -> list[bytes]:
            running[place] += 1
            beside.append(running[1 - place])
            return spoken(body)

        return script

    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(scripted(counting(place))) for place in (0, 1)]
        contest = Contest(tuple(map(Side, servers)), WORKLOAD, "seed")
        await contest.run(1)
    # All of the first have been asked before any of the second is.
    assert beside == [0] * 6 + [6] * 6


async def test_no_more_clients_than_asked_for() -> None:
    at_once, most = 0, 0
    answered = asyncio.Event()

    def script(body: dict[str, Any]) -> Sequence[bytes]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        return spoken(body)

    def done() -> None:
        nonlocal at_once
        at_once -= 1
        answered.set()

    async with scripted(script) as server:
        run = await drive(server, WORKLOAD.questions("seed"), 3, answered=done)
    assert most == 3
    assert (len(run.answers), at_once, answered.is_set()) == (6, 0, True)
    assert run.seconds > 0


async def test_after_its_time_no_question_is_begun_and_what_runs_is_waited_for() -> None:
    endless = Workload(("a",), clients=2, requests=None, max_tokens=4)
    async with scripted(spoken) as server:
        run = await drive(server, endless.questions("seed"), 2, seconds=0.05)
    assert run.seconds > 0.02
    assert 2 <= len(run.answers) < 200
    assert not [answer.failure for answer in run.answers if answer.failure]


async def test_a_round_that_is_broken_off_leaves_nothing() -> None:
    async with scripted(spoken) as one, scripted(spoken) as other:
        contest = Contest((Side(one), Side(other)), WORKLOAD, "seed")

        def begun(number: int, side: Side) -> None:
            if (number, side) == (1, contest.sides[0]):
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await contest.run(2, begun=begun)
        assert [len(side.runs) for side in contest.sides] == [1, 1]
        assert Report.of(contest).failures == 0


async def test_the_first_word_to_a_model_tells_what_is_wrong() -> None:
    def script(body: dict[str, Any]) -> list[bytes]:
        return refused(b"404 Not Found", "no such model") if body["model"] == "b" else spoken(body)

    async with scripted(script) as server:
        with pytest.raises(ConfigurationError, match=r"b at .* doesn't answer: 404: .*no such model"):
            await Contest((Side(server),), WORKLOAD, "seed").warm_up()


async def test_a_report_counts_failures_by_reason_and_leaves_them_out_of_the_rest() -> None:
    def script(body: dict[str, Any]) -> list[bytes]:
        return refused(b"503 Service Unavailable", "full") if body["model"] == "b" else spoken(body)

    async with scripted(script) as one, scripted(spoken) as other:
        contest = Contest((Side(one), Side(other)), WORKLOAD, "seed")
        await contest.run(2)
    report = Report.of(contest)
    failing, sound = report.accounts
    assert (report.failures, sum(failing.failures.values()), sound.failures) == (6, 6, {})
    assert [figures.tokens for figures in failing.models["b"]] == [0, 0]
    assert [figures.tokens for figures in failing.models["a"]] == [12, 12]
    assert [figures.tokens for figures in sound.rounds] == [24, 24]


async def test_the_json_has_everything_and_keeps_its_shape() -> None:
    async with scripted(spoken) as one, scripted(spoken) as other:
        contest = Contest((Side(one), Side(other)), WORKLOAD, "seed")
        await contest.run(2)
    written = json.loads(json.dumps(Report.of(contest).as_dict()))
    assert set(written) == {"format", "loradock", "seed", "workload", "servers", "ratios"}
    assert (written["format"], written["seed"]) == (FORMAT, "seed")
    assert written["workload"]["models"] == ["a", "b"]
    for account in written["servers"]:
        assert set(account) == {"url", "rounds", "models", "failures"}
        assert len(account["rounds"]) == len(account["models"]["a"]) == 2
        assert set(account["rounds"][0]["ttft"]) == {"p50", "p90", "p99", "mean", "most"}
    assert set(written["ratios"]["tokens_per_second"]) == {"median", "low", "high", "pairs", "at_least", "at_most"}


async def test_one_server_alone_is_compared_with_nobody() -> None:
    async with scripted(spoken) as server:
        contest = Contest((Side(server),), WORKLOAD, "seed")
        await contest.run(1)
    assert Report.of(contest).as_dict()["ratios"] == {}
