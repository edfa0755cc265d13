"""Materials of this room's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from bring import Room

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """Where sources and bases of this session are made."""
    return Room(tmp_path_factory.mktemp("brought"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Miniature models are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
