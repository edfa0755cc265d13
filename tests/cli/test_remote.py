"""The commands that speak to a running service."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from tiny_model import write_adapter
from typer.testing import CliRunner, Result

from service.cli import remote
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., Result]

NUMBERS = itertools.count(1)
COMMANDS = ("publish", "list_", "show", "rollback", "remove", "pin", "unpin")


@pytest.fixture
def run(service_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the service, which the environment names."""
    monkeypatch.setenv("LORADOCK_URL", service_url)
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    for name in COMMANDS:
        app.command(name.rstrip("_"))(getattr(remote, name))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def published(run: Run, tmp_path: Path) -> Iterator[str]:
    """An adapter that was published from here, under a name that no other test uses."""
    name = f"cli-{next(NUMBERS)}"
    done = run("publish", write_adapter(tmp_path / "one", seed=1), "--name", name)
    assert done.exit_code == 0, done.output
    yield name
    run("remove", name)


def printed(done: Result) -> Any:
    return json.loads(done.stdout)


def test_publishing_says_which_version_is_active(run, published, tmp_path):
    done = run("publish", write_adapter(tmp_path / "two", seed=2), "--name", published)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, f"{published}@2 is active.")


def test_publishing_sends_what_belongs_to_the_adapter_and_nothing_else(run, published, tmp_path):
    source = write_adapter(tmp_path / "two", seed=2)
    (source / "optimizer.pt").write_bytes(b"x" * (2 << 20))
    done = run("publish", source, "--name", published)
    assert done.exit_code == 0, done.output


def test_publishing_with_json_prints_the_record(run, published, tmp_path):
    record = printed(run("publish", write_adapter(tmp_path / "two", seed=2), "--name", published, "--json"))
    assert (record["name"], record["active"]) == (published, 2)


def test_a_refusal_shows_every_problem_with_its_remedy_and_ends_with_1(run, tmp_path):
    done = run("publish", write_adapter(tmp_path / "bad", use_dora=True, r=8), "--name", "bad")
    assert done.exit_code == 1
    assert "unsupported_feature" in done.stderr
    assert "rank_mismatch" in done.stderr
    assert "→" in done.stderr
    assert not done.stdout


def test_a_refusal_with_json_prints_the_services_own_problem(run, tmp_path):
    done = run("publish", write_adapter(tmp_path / "bad", use_dora=True), "--name", "bad", "--json")
    assert done.exit_code == 1
    assert printed(done)["status"] == 422
    assert {problem["code"] for problem in printed(done)["problems"]} >= {"unsupported_feature"}


def test_another_base_has_to_be_allowed(run, published, tmp_path):
    source = write_adapter(tmp_path / "other", seed=3, base_model_name_or_path="example/another")
    assert run("publish", source, "--name", published).exit_code == 1
    assert run("publish", source, "--name", published, "--allow-base-mismatch").exit_code == 0


def test_a_directory_without_an_adapter_is_a_mistake_in_the_command(run, tmp_path):
    done = run("publish", tmp_path, "--name", "x")
    assert done.exit_code == 2
    assert "adapter_config.json" in done.output


def test_the_list_has_a_line_for_every_adapter(run, published):
    done = run("list")
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(published)]
    assert "ready" in line
    assert "@1" in line
    assert published in [record["name"] for record in printed(run("list", "--json"))["adapters"]]


def test_one_adapter_is_shown_with_its_versions(run, published, tmp_path):
    run("publish", write_adapter(tmp_path / "two", seed=2), "--name", published)
    done = run("show", published)
    record = printed(run("show", published, "--json"))
    assert done.exit_code == 0
    for version in record["versions"]:
        assert version["digest"][:12] in done.stdout
    assert "example/tiny-base" in done.stdout


def test_the_last_failure_is_shown_beside_what_serves(run, published, tmp_path):
    run("publish", write_adapter(tmp_path / "bad", use_dora=True), "--name", published)
    done = run("show", published)
    assert "ready" in done.stdout
    assert "unsupported_feature" in done.stdout


def test_rolling_back_and_forth(run, published, tmp_path):
    run("publish", write_adapter(tmp_path / "two", seed=2), "--name", published)
    assert run("rollback", published).stdout.startswith(f"{published}@1 is active.")
    assert run("rollback", published, "--to", 2).stdout.startswith(f"{published}@2 is active.")
    assert run("rollback", published, "--to", 9).exit_code == 1


def test_pinning(run, published):
    assert run("pin", published).exit_code == 0
    assert printed(run("show", published, "--json"))["pinned"] is True
    assert "pinned    yes" in run("show", published).stdout
    assert run("unpin", published).exit_code == 0
    assert printed(run("show", published, "--json"))["pinned"] is False


def test_removing(run, published):
    assert run("remove", published).exit_code == 0
    gone = run("show", published)
    assert (gone.exit_code, "no adapter" in gone.stderr) == (1, True)


def test_a_name_is_never_taken_for_a_path(run):
    done = run("show", "../livez", "--json")
    assert done.exit_code != 0
    assert "alive" not in done.stdout


@pytest.fixture
def silent_url() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def test_a_service_that_is_not_there_ends_with_2(run, silent_url):
    done = run("list", "--url", silent_url)
    assert done.exit_code == 2
    assert silent_url in done.stderr
    assert printed(run("list", "--url", silent_url, "--json"))["detail"].startswith("No service answers")


def test_an_address_that_is_none_ends_with_2(run):
    assert run("list", "--url", "no url at all").exit_code == 2


def test_the_commands_are_light_to_import():
    heavy = ("httpx2", "rich.progress", "fastapi", "numpy", "torch", "vllm", "pydantic")
    script = f"import sys, service.cli.remote; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_services_settings_let_the_clients_variable_be(monkeypatch):
    monkeypatch.setenv("LORADOCK_URL", "http://elsewhere")
    assert Settings.load(["--model", "x"]).model == "x"
