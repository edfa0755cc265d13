"""The embedded demo base: whole or not there, and never made twice."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from service.errors import ConfigurationError
from service.export import demo_model
from service.export.demo_model import is_whole, write_demo_model

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256))}


def stand_in(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    """A directory with a manifest, in place of the 270 MB that take half a minute."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    manifest = {"format": demo_model.FORMAT, "model": demo_model.NAME, "files": entries}
    (directory / demo_model.MANIFEST).write_text(json.dumps(manifest))
    return directory


def silent(_doing: str, _part: float) -> None:
    """Progress nobody watches."""


def test_nothing_is_done_when_it_is_there(tmp_path: Path) -> None:
    """A whole directory is left exactly as it is, and progress says so at once."""
    base = stand_in(tmp_path / "base")
    before = {file.name: file.stat().st_mtime_ns for file in base.iterdir()}
    told: list[tuple[str, float]] = []
    write_demo_model(base, lambda doing, part: told.append((doing, part)))
    assert told == [("There and whole", 1.0)]
    assert {file.name: file.stat().st_mtime_ns for file in base.iterdir()} == before


@pytest.mark.parametrize("name", [*FILES, demo_model.MANIFEST])
def test_any_damage_is_noticed(tmp_path: Path, name: str) -> None:
    """Gone, cut short or one bit changed: not whole."""
    for damage in (None, lambda content: content[:-1], lambda content: bytes([content[0] ^ 1]) + content[1:]):
        base = stand_in(tmp_path / f"base-{id(damage)}")
        assert is_whole(base)
        file = base / name
        if damage:
            file.write_bytes(damage(file.read_bytes()))
        else:
            file.unlink()
        assert not is_whole(base)


@pytest.mark.parametrize("manifest", ["[]", '{"format": 1}', '{"format": 1, "files": {"config.json": 2}}', "\x00"])
def test_a_strange_manifest_is_not_whole(tmp_path: Path, manifest: str) -> None:
    """Whatever lies there under the manifest's name, it is read without an exception."""
    base = stand_in(tmp_path / "base")
    (base / demo_model.MANIFEST).write_text(manifest)
    assert not is_whole(base)


def test_a_manifest_of_another_format_is_made_anew(tmp_path: Path) -> None:
    """What an older loradock wrote does not count as whole."""
    base = stand_in(tmp_path / "base")
    manifest = json.loads((base / demo_model.MANIFEST).read_text())
    (base / demo_model.MANIFEST).write_text(json.dumps(manifest | {"format": demo_model.FORMAT - 1}))
    assert not is_whole(base)


def test_something_else_is_left_alone(tmp_path: Path) -> None:
    """A directory or a file that is no demo model is refused and not touched."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("draft")
    for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(ConfigurationError, match="not a demo model"):
            write_demo_model(path, silent)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "draft"


@pytest.mark.engine
def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle: neither half a model nor a temporary directory stays."""

    def interrupt(_doing: str, _part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_model(tmp_path / "base", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    """The new directory takes the damaged one's place as a whole."""
    base, made = stand_in(tmp_path / "base"), stand_in(tmp_path / "made")
    (base / "config.json").write_text("")
    demo_model._put_in_place(made, base, tmp_path / "replaced")
    assert is_whole(base)
    assert not made.exists()


def test_the_quicker_of_two_stays(tmp_path: Path) -> None:
    """When another process has put a whole one there meanwhile, that one stays."""
    base, made = stand_in(tmp_path / "base"), stand_in(tmp_path / "made", FILES | {"config.json": b"[]"})
    demo_model._put_in_place(made, base, tmp_path / "replaced")
    assert (base / "config.json").read_bytes() == FILES["config.json"]


def read(file: Path) -> dict[str, object]:
    """A JSON file."""
    content: dict[str, object] = json.loads(file.read_text())
    return content


@pytest.mark.engine
def test_it_has_the_shape_of_the_vendors_directory(demo_base: Path) -> None:
    """Named, in bfloat16, with tokenizer, template and ends; nothing of the machine that made it."""
    config = read(demo_base / "config.json")
    assert config["_name_or_path"] == demo_model.NAME
    assert config["dtype"] == "bfloat16"
    assert "_model_name_or_path" not in config
    ends = read(demo_base / "generation_config.json")
    assert {key: ends[key] for key in ends if key != "transformers_version"} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    tokenizer = read(demo_base / "tokenizer_config.json")
    assert tokenizer["model_max_length"] == demo_model.CONTEXT_LENGTH
    assert not {"is_local", "local_files_only", "name_or_path"} & tokenizer.keys()
    assert "<|im_start|>" in (demo_base / "chat_template.jinja").read_text()
    assert {oct(file.stat().st_mode & 0o777) for file in demo_base.iterdir()} == {"0o644"}
    assert 265e6 < (demo_base / "model.safetensors").stat().st_size < 275e6
