"""What outlives the signal that ends the service: the last file of its directory, since it ends the shared one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from streams import stream_through

if TYPE_CHECKING:
    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_supervisor_lets_a_stream_end(service: ServiceProcess) -> None:
    stream_through(service, BASE, signal.SIGTERM)
