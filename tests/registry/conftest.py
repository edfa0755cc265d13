"""A registry to test with; see `tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import Builder, directory, make_base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.adapter.base import Base


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def builder(base: Base) -> Iterator[Builder]:
    with directory() as root:
        yield Builder(Path(root), base)
