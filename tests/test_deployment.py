"""The container files speak of settings that exist, and leave the service the time it asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
FILES = ("Dockerfile", "docker-compose.yml", "docker-compose.gpu.yml")


def compose() -> dict[str, Any]:
    """The compose file's services."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


@pytest.mark.parametrize("name", FILES)
def test_every_variable_is_a_setting(name: str) -> None:
    """The service refuses unknown LORADOCK_ variables, so the recipe may set none."""
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", (ROOT / name).read_text())) <= known


def test_docker_waits_longer_than_the_service() -> None:
    """The grace period ends after the service's own shutdown timeout."""
    grace = int(compose()["loradock"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["shutdown_timeout"].default


def test_only_loopback_is_published() -> None:
    """Nothing of the stack is reachable from another machine unless somebody says so."""
    for service in compose().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_prometheus_asks_the_service() -> None:
    """The scrape target is the service of the compose file, at the port the image exposes."""
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in scrape for group in job["static_configs"] for target in group["targets"]]
    exposed = re.findall(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert targets == [f"loradock:{exposed[0]}"]
    assert "loradock" in compose()
