"""Materials of this room's tests: bases and adapters made by code, and real exports where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import smol

from service.adapter.base import Base

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
def exports() -> Path:
    """Directories that Unsloth wrote."""
    if not EXPORTS.is_dir():
        pytest.skip("there are no real exports at ../shared/exports")
    return EXPORTS


@pytest.fixture(scope="session")
def healthy(synthetic_adapter: Path) -> Path:
    """A real export to spoil, or else one made by code."""
    real = EXPORTS / "cpu_plain_lora"
    return real if real.is_dir() else synthetic_adapter
