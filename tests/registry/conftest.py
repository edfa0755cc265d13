"""A registry to test with; see `builder.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builder import Builder, directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.adapter.base import Base


@pytest.fixture
def builder(tiny_base: Base) -> Iterator[Builder]:
    with directory() as root:
        yield Builder(Path(root), tiny_base)
