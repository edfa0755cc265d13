from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_adapter

from service.adapter.content import canonical_config, copy_content, digest_of
from service.adapter.layout import CONTENT_FILES
from service.adapter.spec import DIGEST, codes
from service.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 1 << 20


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter's directory with a template, a tokenizer and what trainers leave beside it."""
    directory = write_adapter(tmp_path / "source")
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "README.md", "training_args.bin"):
        (directory / name).write_text("{}")
    (directory / "checkpoint-1").mkdir()
    return directory


def test_copies_what_counts_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").chmod(0o600)
    digest = copy_content(adapter, tmp_path / "copy", max_bytes=LIMIT)
    assert DIGEST.fullmatch(digest)
    assert digest == digest_of(adapter, max_bytes=LIMIT) == digest_of(tmp_path / "copy", max_bytes=LIMIT)
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert copied == {path.name for path in adapter.iterdir()} & set(CONTENT_FILES)
    for name in copied:
        assert (tmp_path / "copy" / name).read_bytes() == (adapter / name).read_bytes()
        assert (tmp_path / "copy" / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", [name for name in CONTENT_FILES if name != "adapter_config.json"])
def test_every_byte_of_content_counts(adapter: Path, name: str) -> None:
    before = digest_of(adapter, max_bytes=LIMIT)
    with (adapter / name).open("ab") as file:
        file.write(b" ")
    assert digest_of(adapter, max_bytes=LIMIT) != before


def test_other_files_do_not_count(adapter: Path) -> None:
    before = digest_of(adapter, max_bytes=LIMIT)
    (adapter / "README.md").write_text("rewritten")
    (adapter / "optimizer.pt").write_text("new")
    assert digest_of(adapter, max_bytes=LIMIT) == before


def test_bytes_do_not_move_between_files(adapter: Path) -> None:
    """The same bytes under another name are another content."""
    before = digest_of(adapter, max_bytes=LIMIT)
    (adapter / "tokenizer.json").rename(adapter / "vocab.json")
    assert digest_of(adapter, max_bytes=LIMIT) != before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values), st.lists(st.text()), st.randoms())
def test_a_configuration_that_means_the_same_is_the_same(
    fields: dict[str, object], names: list[str], random: object
) -> None:
    one = {**fields, "target_modules": names}
    items = list(one.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    shuffled = dict(items) | {"target_modules": sorted(names, reverse=True)}
    assert canonical_config(json.dumps(one).encode()) == canonical_config(json.dumps(shuffled, indent=3).encode())
    changed = {**one, "target_modules": [*names, "another"]}
    assert canonical_config(json.dumps(one).encode()) != canonical_config(json.dumps(changed).encode())


@given(st.binary())
def test_what_is_no_configuration_stays_as_it_is(data: bytes) -> None:
    assert canonical_config(data) == data or data.lstrip()[:1] == b"{"


def test_a_link_is_not_followed(adapter: Path, tmp_path: Path) -> None:
    shutil.move(adapter / "tokenizer.json", tmp_path / "secret")
    (adapter / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(Rejected) as raised:
        copy_content(adapter, tmp_path / "copy", max_bytes=LIMIT)
    assert codes(raised.value.problems) == ["path_forbidden"]
    assert not (tmp_path / "copy" / "tokenizer.json").exists()


def test_a_pipe_is_not_waited_for(adapter: Path) -> None:
    os.mkfifo(adapter / "vocab.json")
    with pytest.raises(Rejected) as raised:
        digest_of(adapter, max_bytes=LIMIT)
    assert codes(raised.value.problems) == ["path_forbidden"]


def test_the_limit_holds_for_all_files_together(adapter: Path, tmp_path: Path) -> None:
    size = sum((adapter / name).stat().st_size for name in CONTENT_FILES if (adapter / name).exists())
    assert digest_of(adapter, max_bytes=size)
    with pytest.raises(TooLarge) as raised:
        copy_content(adapter, tmp_path / "copy", max_bytes=size - 1)
    assert codes(raised.value.problems) == ["too_large"]


def test_a_directory_that_is_no_adapter_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(Rejected) as raised:
        copy_content(tmp_path / "source", tmp_path / "copy", max_bytes=LIMIT)
    assert codes(raised.value.problems) == ["config_missing", "weights_missing"]
    assert not (tmp_path / "copy").exists()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as raised:
        digest_of(tmp_path / "nothing", max_bytes=LIMIT)
    assert codes(raised.value.problems) == ["path_forbidden"]


def test_a_copy_never_writes_over_a_file(adapter: Path, tmp_path: Path) -> None:
    copy_content(adapter, tmp_path / "copy", max_bytes=LIMIT)
    with pytest.raises(FileExistsError):
        copy_content(adapter, tmp_path / "copy", max_bytes=LIMIT)
