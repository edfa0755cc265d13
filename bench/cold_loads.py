"""Cold loads beside steady streams: how much longer is the gap between two tokens while adapters are brought in?

    python bench/cold_loads.py --base .base/demo [--servers loradock,vllm-same]

Four streams on the base; adapters of rank 64 on all projections (78 MB in 32 bit) are asked for one after the other,
more of them than the engine holds, so that each is a cold load. The gaps against those beside the same requests to
adapters that are resident, and against those of the streams alone: three phases a turn, and turns as in side_by_side.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from servers import KINDS, LORADOCK, among, turns

from adapters import made
from service.load.answer import read
from service.load.drive import drive
from service.load.exchange import exchange
from service.load.question import Question
from service.load.ratio import Ratio
from service.load.server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

RANK = 64
STREAMS = 4
RESIDENT = 4
"""As many as there are slots."""
PAUSE = 0.5
"""Seconds between two requests to adapters."""
SETTLING = 3.0
"""Seconds of the streams that aren't looked at."""


async def gaps(server: Server, asked: Sequence[str], seconds: float) -> list[float]:
    """Gaps between tokens of the steady streams, while the adapters in `asked` are asked for in turn."""
    steady = (Question("base", f"Once {number}", 256) for number in range(1000))
    began = time.perf_counter() + SETTLING
    streams = asyncio.create_task(drive(server, steady, STREAMS, seconds=SETTLING + seconds))
    await asyncio.sleep(SETTLING)
    names = itertools.cycle(asked)
    while time.perf_counter() < began + seconds:
        if asked:
            answer = read(await exchange(server, Question(next(names), "Hi", 1), seconds + SETTLING))
            _sound(answer.failure)
        await asyncio.sleep(PAUSE)
    found = []
    for answer in (await streams).answers:
        _sound(answer.failure)
        seen = [moment for moment in answer.arrivals if began <= moment <= began + seconds]
        found += [float(gap) for gap in np.diff(seen)]
    return found


def _sound(failure: str | None) -> None:
    if failure:
        raise RuntimeError(failure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=among(KINDS), default=[LORADOCK])
    options = parser.parse_args()
    # Kind → (alone, beside resident adapters, beside loads, longest of these) for each round.
    rows: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in options.servers}
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        names = made(options.base, room / "adapters", options.adapters, RANK, "large", np.float32)
        sizes = ("--max-loras", str(RESIDENT), "--max-cpu-loras", "8", "--max-lora-rank", str(RANK))
        with turns(options.servers, options.base, room / "adapters", names, room, *sizes) as measured:
            for number in range(options.rounds):
                for kind, url in measured(number):
                    server = Server.at(url)
                    quiet, resident, loading = (
                        asyncio.run(gaps(server, asked, options.seconds)) for asked in ([], names[:RESIDENT], names)
                    )
                    rows[kind].append((_p99(quiet), _p99(resident), _p99(loading), max(loading)))
    print(f"p99 of the gap between two tokens, ms; medians of {options.rounds} rounds")
    print("| | alone | beside resident adapters | beside loads | to resident | to alone | longest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, rounds in rows.items():
        times = [statistics.median(column) * 1000 for column in zip(*rounds, strict=True)]
        to_resident = Ratio.of((loading, resident) for _, resident, loading, _ in rounds)
        to_alone = Ratio.of((loading, alone) for alone, _, loading, _ in rounds)
        cells = [kind, *(f"{value:.0f}" for value in times[:3]), f"{to_resident}", f"{to_alone}"]
        print(f"| {' | '.join(cells)} | {times[3]:.0f} |")


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


if __name__ == "__main__":
    main()
