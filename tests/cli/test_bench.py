"""The load test, as it is typed, of the service itself on the echo engine."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from house import serving
from load_server import scripted, spoken
from tiny_model import write_adapter
from typer.testing import CliRunner, Result

from service.cli.bench import bench
from service.cli.remote import publish, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.adapter.base import Base

    Run = Callable[..., Result]

SMALL = ("--clients", 4, "--requests", 8, "--rounds", 2, "--prompt-tokens", 8, "--max-tokens", 4)


@pytest.fixture(scope="module")
def url(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with two adapters."""
    room = tmp_path_factory.mktemp("bench")
    with serving(tiny_base, room) as url:
        commands = typer.Typer()
        commands.command("publish")(publish)
        commands.command("remove")(remove)
        for number in (1, 2):
            source = write_adapter(room / f"bench-{number}", seed=number)
            done = CliRunner().invoke(commands, ["publish", str(source), "--url", url])
            assert done.exit_code == 0, done.output
        yield url


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(bench)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def written(path: Path) -> Any:
    return json.loads(path.read_text())


def test_all_models_of_a_server_are_asked(run: Run, url: str, tmp_path: Path) -> None:
    done = run("--url", url, *SMALL, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    found = written(tmp_path / "out.json")
    assert {"bench-1", "bench-2"} < set(found["workload"]["models"])
    (account,) = found["servers"]
    assert [figures["requests"] for figures in account["rounds"]] == [8, 8]
    assert [figures["tokens"] for figures in account["rounds"]] == [32, 32]
    assert "tokens/s" in done.stdout
    assert "bench-1" in done.stdout


def test_names_and_patterns_choose_the_models(run: Run, url: str, tmp_path: Path) -> None:
    done = run("--url", f"{url}/v1", "--models", "bench-*", "--mix", "zipf", *SMALL, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert written(tmp_path / "out.json")["workload"]["models"] == ["bench-1", "bench-2"]


@pytest.mark.parametrize("how", [("--no-stream",), ("--chat",)])
def test_whole_answers_and_chats(run: Run, url: str, how: tuple[str, ...]) -> None:
    done = run("--url", url, *SMALL, *how)
    assert done.exit_code == 0, done.output
    assert ("time to first token" in done.stdout) == (how == ("--chat",))


def test_two_servers_stand_side_by_side(run: Run, url: str, service_url: str, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "out.json", "--plot", tmp_path / "out.png")
    done = run("--url", url, "--against", service_url, *SMALL, *files)
    assert done.exit_code == 0, done.output
    found = written(tmp_path / "out.json")
    assert [account["url"] for account in found["servers"]] == [url, service_url]
    assert found["ratios"]["tokens_per_second"]["pairs"] == 2
    assert "ratio" in done.stdout
    assert "bench-1, bench-2: not asked" in done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_duration_ends_a_round(run: Run, url: str, tmp_path: Path) -> None:
    words = ("--clients", 2, "--rounds", 1, "--duration", 0.3, "--prompt-tokens", 8, "--max-tokens", 4)
    done = run("--url", url, *words, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert 0.2 < written(tmp_path / "out.json")["servers"][0]["rounds"][0]["seconds"] < 5


def test_answers_that_are_too_short_are_failures(run: Run, url: str) -> None:
    """The echo says no more than it was told; here it is told less than it is to say."""
    words = ("--clients", 2, "--requests", 4, "--rounds", 1, "--prompt-tokens", 2, "--max-tokens", 9)
    done = run("--url", url, *words)
    assert done.exit_code == 1
    assert "4 failed: 3 tokens instead of 9" in done.stdout
    assert run("--url", url, *words, "--no-ignore-eos").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "http://127.0.0.1:9"), "No server answers at http://127.0.0.1:9"),
        (("--url", "somewhere"), "somewhere is no address"),
        (("--url", "http://host:port"), "is no address"),
        (("--url", "URL", "--models", "nobody"), "There is no model to ask for: URL has "),
        (("--url", "URL/livez"), "URL/livez doesn't list its models"),
    ],
)
def test_what_cannot_be_asked_ends_with_2_and_a_sentence(url: str, words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "service", "bench", *(word.replace("URL", url) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("loradock: ")
    assert said.replace("URL", url) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_directory_is_told_before_anything_runs(run: Run, url: str, tmp_path: Path) -> None:
    done = run("--url", url, "--json", tmp_path / "none" / "out.json")
    assert done.exit_code == 2
    assert "no directory" in done.output


@pytest.mark.anyio
async def test_ctrl_c_ends_it_with_the_rounds_that_are_whole(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    a_round_is_over = asyncio.Event()

    def script(body: dict[str, Any]) -> list[bytes]:
        # Two to warm up, eight a round.
        if len(asked) > 2 + 2 * 8:
            a_round_is_over.set()
        return spoken(body)

    async with scripted(script, asked) as server:
        words = ["--url", server.url, *map(str, SMALL), "--rounds", "100000", "--json", str(tmp_path / "out.json")]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "bench", *words),
            stdout=pipe,
            stderr=pipe,
            # Who runs tests in the background has them ignore it, and children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        await a_round_is_over.wait()
        process.send_signal(signal.SIGINT)
        stdout, stderr = await process.communicate()
    assert process.returncode == 130
    assert b"Stopped after " in stderr
    assert b"Traceback" not in stderr
    assert b"tokens/s" in stdout
    assert written(tmp_path / "out.json")["servers"][0]["rounds"]


def test_its_help_imports_nothing_heavy() -> None:
    heavy = ("httpx2", "h11", "rich.progress", "numpy", "matplotlib", "service.load.contest")
    script = f"import sys, service.cli.bench; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
