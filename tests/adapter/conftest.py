"""Materials of this room's tests: bases and adapters made by code, and real exports where they are at hand."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import smol
from adapter.defects import MAX_RANK
from hypothesis import HealthCheck, settings

from service.adapter.base import Base
from service.adapter.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapter.defects import Defect

    from service.adapter.spec import Report

# Machines that run tests are busy, and a directory that every example writes anew is no state between them.
settings.register_profile(
    "files", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("files")

EXPORTS = Path(__file__).parents[3] / "shared" / "exports"


@pytest.fixture(scope="session")
def tokenizer() -> Path | None:
    """The directory whose tokenizer base and adapters share; None where each gets one made by code."""
    real = EXPORTS / "cpu_plain_lora"
    return real if real.is_dir() else None


@pytest.fixture(scope="session")
def smol_base(tokenizer: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base with SmolLM2-135M's names and shapes."""
    return Base.read(smol.write_base(tmp_path_factory.mktemp("smol"), tokenizer))


@pytest.fixture(scope="session")
def synthetic_adapter(tokenizer: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter for it, made by code."""
    return smol.write_adapter(tmp_path_factory.mktemp("adapters") / "healthy", tokenizer)


@pytest.fixture(scope="session")
def verdict(healthy: Path, smol_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Defect], Report]:
    """What is said of a defect; each is made and judged once, and takes no room afterwards."""
    room = tmp_path_factory.mktemp("defects")

    @cache
    def judge(defect: Defect) -> Report:
        directory = defect.make(healthy, room / defect.name)
        try:
            return inspect(directory, smol_base, max_rank=MAX_RANK)
        finally:
            shutil.rmtree(directory)

    return judge


@pytest.fixture(scope="session")
def healthy(synthetic_adapter: Path) -> Path:
    """A real export to spoil, or else one made by code."""
    real = EXPORTS / "cpu_plain_lora"
    return real if real.is_dir() else synthetic_adapter
