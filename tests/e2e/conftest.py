"""One real service for the whole session; tests that end a service start their own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from service_process import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KV_CACHE = 1 << 30
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def launch(
    demo_base: Path, demo_adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ServiceProcess]]:
    """Start a service over a fresh copy of the demo adapters; all are stopped at the end of the session."""
    started: list[ServiceProcess] = []

    def launch(*further: str, model: Path = demo_base) -> ServiceProcess:
        room = tmp_path_factory.mktemp("service")
        adapters = room / "adapters"
        shutil.copytree(demo_adapters, adapters)
        arguments = ("--kv-cache-memory-bytes", str(KV_CACHE), *further)
        service = ServiceProcess(model, adapters, room / "state", room / "service.log", arguments)
        started.append(service)
        return service.start()

    yield launch
    for service in started:
        service.terminate()
    for service in started:
        service.wait_until_ended()


@pytest.fixture(scope="session")
def service(launch: Callable[..., ServiceProcess]) -> ServiceProcess:
    """The service that tests share; what they register carries names of their own."""
    return launch()
