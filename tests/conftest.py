"""What all tests share. That it lies here also lets them import the helpers beside it."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The loop that uvicorn and the engine run on."""
    return "asyncio"
