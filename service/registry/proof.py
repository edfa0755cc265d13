"""Proof before service: an adapter is judged by its files, then loaded and tried in the engine."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from service.adapter.inspection import inspect
from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.errors import Rejected
from service.registry.refs import ProofStamp

if TYPE_CHECKING:
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.spec import Report
    from service.engine.port import Engine, EngineAdapter, Proof
    from service.engine.residency import Residency

RULES: Final = 1
"""Counted up whenever the judgement becomes stricter, so that what is in the store is judged again."""

WEAK = Problem(
    WarningCode.WEAK_EFFECT,
    "A short test answer had the same log-probabilities as the base's.",
    "adapter_model.safetensors",
    "Check that it was trained long enough, and that it is the adapter you meant.",
)


class Prover:
    """Judges adapters for one base, the type it is served in and one limit of rank."""

    def __init__(self, engine: Engine, residency: Residency, base: Base, max_rank: int) -> None:
        self.base = base
        self._engine = engine
        self._residency = residency
        self._max_rank = max_rank

    @property
    def dtype(self) -> str:
        """The serving type; known once the engine has started."""
        return self._engine.limits.dtype

    @property
    def stamp(self) -> ProofStamp:
        """What a proof made now is good for."""
        return ProofStamp(self.base.fingerprint, self.dtype, self._max_rank, RULES)

    def conditions(self, *, allow_base_mismatch: bool) -> str:
        """What a refusal depends on besides the content: under other conditions it deserves another trial."""
        stamp = self.stamp
        return f"{self.base.name} {stamp.base} {stamp.dtype} {stamp.max_rank} {stamp.rules} {allow_base_mismatch}"

    async def judge(self, directory: Path, name: str, *, allow_base_mismatch: bool) -> Report:
        """What the files say. Raises Rejected with every problem."""
        report = await asyncio.to_thread(
            inspect,
            directory,
            self.base,
            max_rank=self._max_rank,
            dtype=self.dtype,
            allow_base_mismatch=allow_base_mismatch,
        )
        if report.problems:
            raise Rejected(report.problems, name)
        return report

    async def try_out(self, adapter: EngineAdapter, name: str, took: dict[str, float]) -> tuple[Problem, ...]:
        """Load it and let it answer; returns warnings. Raises Rejected. It may stay in the engine in either case.

        `took` receives the seconds of `load` and `canary`.
        """
        began = time.perf_counter()
        await self._residency.hold(adapter)
        try:
            loaded = time.perf_counter()
            proof = await self._engine.prove(adapter)
        finally:
            self._residency.release(adapter)
        took |= {"load": round(loaded - began, 4), "canary": round(time.perf_counter() - loaded, 4)}
        if problems := _problems(adapter, proof):
            raise Rejected(problems, name)
        return () if proof.differs else (WEAK,)


def _problems(adapter: EngineAdapter, proof: Proof) -> list[Problem]:
    problems = []
    if proof.modules == 0:
        problems.append(
            Problem(
                ProblemCode.NO_EFFECT,
                "The engine loaded it without a single module that has an effect.",
                "adapter_model.safetensors",
                "Check that it was trained for this base model.",
            )
        )
    elif proof.modules < adapter.modules:
        problems.append(
            Problem(
                ProblemCode.UNKNOWN_MODULE,
                f"The engine applied {proof.modules} of its {adapter.modules} modules.",
                "adapter_model.safetensors",
                "Train without the modules this base doesn't have, or serve it on the base it was trained for.",
            )
        )
    if not proof.finite:
        problems.append(
            Problem(
                ProblemCode.NOT_FINITE,
                "A short test answer contained numbers that are not finite.",
                "adapter_model.safetensors",
                "Train with a lower learning rate, or in bfloat16.",
            )
        )
    return problems
