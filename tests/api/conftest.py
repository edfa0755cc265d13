"""A service to speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from house import build
from tiny_model import write_adapter, write_base

from service.adapter.base import Base

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from house import House


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base."""
    return Base.read(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
async def house(base: Base, tmp_path: Path) -> AsyncIterator[House]:
    """A service that knows no adapter yet."""
    async with build(base, tmp_path) as house:
        yield house


@pytest.fixture
async def pirate(house: House) -> House:
    """The same with the adapter `pirate` in service."""
    write_adapter(house.adapters / "pirate")
    await house.catalog.publish_path("pirate", "pirate")
    return house
