"""`loradock convert` from outside: exit codes, reports, what lies in the result, and that nothing else is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trained
from safetensors.numpy import load_file
from typer.testing import CliRunner

from service.cli.app import app
from service.export.convert import convert
from service.export.request import Request

if TYPE_CHECKING:
    from pathlib import Path

    from bring import Room

COMMAND = [sys.executable, "-m", "service", "convert"]


@pytest.fixture
def adapter(room: Room) -> Path:
    return trained.adapter(room.base(), room.new("adapter"))


def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """The command with --json: its exit code and what it prints."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_result_has_everything_a_model_has(adapter: Path, room: Room, one_thread: None) -> None:
    out = room.new("out")
    code, report = run(adapter, out, "--model", room.base())
    assert code == 0
    assert report == json.loads((out / "conversion.json").read_text())
    assert {file.name for file in out.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "conversion.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in out.iterdir())
    config = json.loads((out / "config.json").read_text())
    assert "_name_or_path" not in config, "its base's name would let adapters of the base pass for its own"
    assert config["dtype"] == "bfloat16"
    card = (out / "README.md").read_text()
    assert report["source_digest"] in card
    assert report["base_fingerprint"] in card


def test_the_source_stays_as_it_is(adapter: Path, room: Room) -> None:
    before = {file.name: file.read_bytes() for file in adapter.iterdir()}
    run(adapter, room.new("out"), "--model", room.base(), "--no-verify")
    assert {file.name: file.read_bytes() for file in adapter.iterdir()} == before


def test_a_refusal_gives_every_reason_and_leaves_nothing(adapter: Path, room: Room) -> None:
    trained.change(adapter, r=8)
    out = room.new("out")
    code, report = run(adapter, out, "--model", room.base())
    assert code == 1
    assert report["converted"] is False
    assert [reason["code"] for reason in report["reasons"]] == ["rank_mismatch", "rank_mismatch"]
    assert all(set(reason) == {"code", "message", "where", "remedy"} for reason in report["reasons"])
    assert not [path for path in out.parent.iterdir() if out.name in path.name]


def test_what_cannot_be_told_is_neither(adapter: Path, room: Room) -> None:
    code, report = run(adapter, room.new("out"), "--model", room.root / "nowhere")
    assert (code, report["converted"]) == (2, None)
    code, report = run(room.root / "nowhere", room.new("out"), "--model", room.base())
    assert (code, report["converted"]) == (2, None)


def test_unverified_says_so(adapter: Path, room: Room) -> None:
    out = room.new("out")
    code, report = run(adapter, out, "--model", room.base(), "--no-verify")
    assert (code, report["verification"]) == (0, None)
    assert "not verified" in (out / "README.md").read_text()
    assert "torch" not in report["versions"]


def test_a_terminal_gets_words(adapter: Path, room: Room, one_thread: None) -> None:
    arguments = ["convert", str(adapter), str(room.new("out")), "--model", str(room.base())]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for words in ("complete and proven", "2 tensors of 2 targets", "64 of 64 equal", "effect kept"):
        assert words in result.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "output_exists" in again.output


def test_a_model_that_ends_on_another_token_ends_on_both(adapter: Path, room: Room) -> None:
    """The adapter's tokenizer says <|start|> ends a turn, where the base says <|end|>."""
    out = room.new("out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / name).write_bytes((room.base() / name).read_bytes())
    settings = json.loads((adapter / "tokenizer_config.json").read_text()) | {"eos_token": "<|start|>"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(Request(adapter, out, str(room.base()), verify=False), lambda *_: None)
    tokens = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    ends = [tokens["<|start|>"], tokens["<|end|>"]]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == ends
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == ends


def test_an_output_layer_is_written_where_it_became_one(room: Room) -> None:
    """The embedding alone was trained, so the output layer keeps the base's weights and a tensor of its own."""
    source = trained.adapter(room.base(), room.new("adapter"), modules_to_save=["embed_tokens"])
    out = room.new("out")
    convert(Request(source, out, str(room.base()), verify=False), lambda *_: None)
    base, result = load_file(room.base() / "model.safetensors"), load_file(out / "model.safetensors")
    embedding = base["model.embed_tokens.weight"]
    assert result["lm_head.weight"].tobytes() == embedding.tobytes()
    assert result["model.embed_tokens.weight"].tobytes() != embedding.tobytes()
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_progress_counts_every_byte(adapter: Path, room: Room) -> None:
    told: list[tuple[str, int, int]] = []
    conversion = convert(
        Request(adapter, room.new("out"), str(room.base()), verify=False),
        lambda stage, done=0, total=0: told.append((stage, done, total)),
    )
    written = [(done, total) for stage, done, total in told if stage == "Writing the weights"]
    assert written[-1] == (conversion.bytes, conversion.bytes)
    assert written == sorted(written)


def test_a_terminated_run_leaves_nothing(adapter: Path, room: Room, tmp_path: Path) -> None:
    """SIGTERM while the proof is being made, which takes seconds: the weights are written by then, and go."""
    arguments = [*COMMAND, str(adapter), str(tmp_path / "out"), "--model", str(room.base()), "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob(".out.converting-*/made/tokenizer.json")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not list(tmp_path.iterdir())


def test_help_is_light() -> None:
    """Nothing that takes seconds to import is imported for a page of help."""
    code = "import sys; from service.cli.app import app; app(['convert', '--help'], standalone_mode=False); "
    heavy = "print([name for name in ('torch', 'transformers', 'peft', 'numpy', 'safetensors') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
