"""What all tests share. That it lies here also lets them import the helpers beside it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from house import build, serving
from tiny_model import write_adapter, write_base

from service.adapter.base import Base
from service.export.demo_model import write_demo_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from house import House

ROOT = Path(__file__).parents[1]
# Taken out of the environment: a service that a test starts would refuse a variable that is no setting of its own.
GIVEN_BASE = os.environ.pop("LORADOCK_TEST_BASE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an engine, what needs one is skipped and says so. In several processes the longest way is begun first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e/"))
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("engine"):
                item.add_marker(pytest.mark.skip(reason="no engine: install the cpu or the gpu extra"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to whoever is free, but those of one directory of e2e/ to one process: they share one service."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return file.rpartition("/")[0] if file.startswith("tests/e2e/") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def demo_base() -> Path:
    """The embedded demo base model; `make test` has put it in place."""
    if GIVEN_BASE:
        return Path(GIVEN_BASE)
    base = ROOT / ".base" / "demo"
    write_demo_model(base, lambda _doing, _part: None)
    return base


@pytest.fixture(scope="session")
def demo_adapters() -> Path:
    """The directory with the adapters the project ships."""
    return ROOT / "adapters"


@pytest.fixture(scope="session")
def voices() -> dict[str, str]:
    """The demo adapters, each with the word, in lower case, that is in all its answers."""
    return {"pirate": "matey", "robot": "beep"}


@pytest.fixture(scope="session")
def exports() -> Path:
    """Adapter directories written by Unsloth itself."""
    directory = ROOT.parent / "shared" / "exports"
    if not directory.is_dir():
        pytest.skip("no Unsloth exports beside the repository (../shared/exports)")
    return directory


@pytest.fixture
def anyio_backend() -> str:
    """The loop that uvicorn and the engine run on."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _log_to_pytest() -> None:
    """The service's log goes where pytest shows it with a failure, and not to standard output."""
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base model of a few kilobytes."""
    return Base.read(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
async def house(tiny_base: Base, tmp_path: Path) -> AsyncIterator[House]:
    """A service on the echo engine that knows no adapter yet."""
    async with build(tiny_base, tmp_path) as house:
        yield house


@pytest.fixture
async def pirate(house: House) -> House:
    """The same with the adapter `pirate` in service."""
    write_adapter(house.adapters / "pirate")
    await house.catalog.publish_path("pirate", "pirate")
    return house


@pytest.fixture(scope="session")
def service_url(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service on the echo engine behind a real socket; for the whole session, so use names of your own."""
    with serving(tiny_base, tmp_path_factory.mktemp("service")) as url:
        yield url
