from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import smol

from service.adapter.conversation import RENAMED_LIMIT, Conversation, compare
from service.adapter.spec import codes
from service.adapter.tokenizer import read_tokenizer
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.adapter.base import Base

OTHER_END, RENAMED = "<|endoftext|>", "<end_of_turn>"


@pytest.fixture
def directory(smol_base: Base, tmp_path: Path) -> Path:
    """A directory with the base's own tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((smol_base.path / name).read_bytes())
    return tmp_path


@pytest.fixture
def judged(directory: Path, smol_base: Base) -> Callable[[], Conversation]:
    """What is said of it after a test has changed it."""
    return lambda: compare(read_tokenizer(directory, like=smol_base.tokenizer), smol_base)


def edit(directory: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((directory / name).read_text())
    change(document)
    (directory / name).write_text(json.dumps(document))


def settings(directory: Path, **changes: object) -> None:
    edit(directory, "tokenizer_config.json", lambda fields: fields.update(changes))


def rename(directory: Path, number: int, text: str) -> None:
    """As Unsloth's get_chat_template renames a token: the same id, another text, everywhere in tokenizer.json."""

    def change(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        old = next(known for known, known_id in vocabulary.items() if known_id == number)
        vocabulary[text] = vocabulary.pop(old)
        for row in document["added_tokens"]:
            if row["id"] == number:
                row["content"] = text

    edit(directory, "tokenizer.json", change)


def test_the_bases_own(judged: Callable[[], Conversation]) -> None:
    assert judged() == Conversation((), (), (), own_template=False, own_tokenizer=False)


def test_the_same_written_otherwise(directory: Path, judged: Callable[[], Conversation]) -> None:
    """Other bytes, padding and lengths, and merges in the older form, are still the same tokenizer."""

    def restyle(document: dict[str, Any]) -> None:
        document["padding"] = {"strategy": "BatchLongest"}
        document["truncation"] = {"max_length": 512}
        merges = document["model"]["merges"]
        document["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]

    edit(directory, "tokenizer.json", restyle)
    settings(directory, padding_side="left", pad_token=OTHER_END, model_max_length=512)
    assert judged() == Conversation((), (), (), own_template=False, own_tokenizer=False)


def test_none_at_all(directory: Path, judged: Callable[[], Conversation]) -> None:
    for path in directory.iterdir():
        path.unlink()
    assert codes(judged().warnings) == ["no_tokenizer"]
    assert not judged().own_tokenizer


def test_its_own_template(directory: Path, judged: Callable[[], Conversation]) -> None:
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{% generation %}{{ message }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert judged().own_template
    assert codes(judged().warnings) == ["chat_template"]
    assert judged().problems == ()


@pytest.mark.parametrize(
    "form", ["{{ 1 }}", [{"name": "other", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]]
)
def test_a_template_inside_the_settings(directory: Path, judged: Callable[[], Conversation], form: object) -> None:
    (directory / "chat_template.jinja").unlink()
    settings(directory, chat_template=form)
    assert judged().own_template


def test_the_end_token_under_another_name(directory: Path, judged: Callable[[], Conversation]) -> None:
    rename(directory, 2, RENAMED)
    settings(directory, eos_token=RENAMED)
    assert codes(judged().warnings) == ["tokenizer", "end_token"]
    assert judged().problems == judged().stop_token_ids == ()
    assert judged().own_tokenizer


@pytest.mark.parametrize("token", ["<|endoftext|>", {"content": "<|endoftext|>", "special": True}])
def test_another_end_token(directory: Path, judged: Callable[[], Conversation], token: object) -> None:
    settings(directory, eos_token=token)
    assert judged().stop_token_ids == (0,)
    assert "end_token" in codes(judged().warnings)


def test_a_template_that_ends_turns_otherwise(directory: Path, judged: Callable[[], Conversation]) -> None:
    """The tokenizer still names the base's end token, but what the adapter learned to write is the template's."""
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}<|endoftext|>")
    assert judged().stop_token_ids == (0,)
    assert codes(judged().warnings) == ["chat_template", "end_token"]


def test_tokens_added_where_the_base_has_room(directory: Path, smol_base: Base) -> None:
    """Some vocabularies end before the embedding does: an id in between is served with the adapter's own tokenizer."""

    def shrink(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        last = max(vocabulary, key=lambda text: vocabulary[text])
        del vocabulary[last]

    edit(directory, "tokenizer.json", shrink)
    fewer = read_tokenizer(directory)
    base = _with_tokenizer(smol_base, fewer)
    own = compare(read_tokenizer(smol_base.path), base)
    assert own.problems == ()
    assert own.own_tokenizer
    assert "tokenizer" in codes(own.warnings)


def _with_tokenizer(base: Base, tokenizer: Any) -> Base:
    from dataclasses import replace

    return replace(base, tokenizer=tokenizer)


@pytest.mark.parametrize(("count", "expected"), [(RENAMED_LIMIT, []), (RENAMED_LIMIT + 1, ["vocabulary_mismatch"])])
def test_how_many_tokens_may_be_renamed(
    directory: Path, judged: Callable[[], Conversation], count: int, expected: list[str]
) -> None:
    def change(document: dict[str, Any]) -> None:
        by_id = {number: text for text, number in document["model"]["vocab"].items()}
        for number in range(1000, 1000 + count):
            document["model"]["vocab"][f"renamed {number}"] = document["model"]["vocab"].pop(by_id[number])

    edit(directory, "tokenizer.json", change)
    assert codes(judged().problems) == expected


@pytest.mark.parametrize(("length", "expected"), [(8192, []), (8193, ["rope_extended"]), (10**30, []), ("long", [])])
def test_a_longer_context(
    directory: Path, judged: Callable[[], Conversation], length: object, expected: list[str]
) -> None:
    settings(directory, model_max_length=length)
    assert codes(judged().warnings) == expected


def test_vocabularies_in_lists(directory: Path, judged: Callable[[], Conversation]) -> None:
    """Unigram models keep pairs of text and score in the order of ids."""

    def change(document: dict[str, Any]) -> None:
        texts = sorted(document["model"]["vocab"], key=lambda text: document["model"]["vocab"][text])
        document["model"] = {"type": "Unigram", "vocab": [[text, 0.0] for text in texts]}

    edit(directory, "tokenizer.json", change)
    assert judged().problems == ()
    assert codes(judged().warnings) == ["tokenizer"]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(model=[]),
        lambda document: document.update(added_tokens=[{"id": "1", "content": "x"}]),
        lambda document: document.update(added_tokens=[{"id": 1}]),
        lambda document: document.update(added_tokens=5),
        lambda document: document["model"].update(vocab={"a": -1}),
        lambda document: document["model"].update(vocab={"a": 1 << 40}),
        lambda document: document["model"].update(vocab=[1, 2]),
        lambda document: document["model"].update(vocab="text"),
        lambda document: document["model"].update(merges=5),
    ],
)
def test_documents_that_are_no_tokenizer(directory: Path, smol_base: Base, change: Callable[[Any], object]) -> None:
    edit(directory, "tokenizer.json", change)
    with pytest.raises(Rejected) as raised:
        read_tokenizer(directory, like=smol_base.tokenizer)
    assert codes(raised.value.problems) == ["config_invalid"]


def test_a_synthetic_tokenizer_has_the_bases_size(tmp_path: Path) -> None:
    smol.write_tokenizer(tmp_path)
    vocabulary = read_tokenizer(tmp_path).vocabulary
    assert vocabulary is not None
    assert len(vocabulary.tokens) == len(vocabulary.ids) == smol.VOCABULARY
