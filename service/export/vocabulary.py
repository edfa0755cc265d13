"""Tokenizer and chat template of the result: the source's own, and the base's where they provably are the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from service.adapter.spec import ProblemCode, WarningCode
from service.adapter.tokenizer import SETTINGS, TEMPLATE, TOKENIZER_FILES, VOCABULARY
from service.export.refusal import ExportCode, Refusal, refuse

if TYPE_CHECKING:
    from pathlib import Path

    from service.adapter.tokenizer import Tokenizer

SENTENCEPIECE = "tokenizer.model"
TABLES = (VOCABULARY, SENTENCEPIECE, "vocab.json")
"""Files any one of which holds a vocabulary."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a vision model cuts its images by."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with the tokenizer read from it."""

    directory: Path
    tokenizer: Tokenizer
    rows: int
    """Rows of the embedding there: the source's for the source, the base's for the base."""

    def files(self, names: tuple[str, ...]) -> dict[str, Path]:
        """Those of the files that are there."""
        return {name: self.directory / name for name in names if (self.directory / name).is_file()}

    @property
    def has_vocabulary(self) -> bool:
        """Whether text can be cut by what is there."""
        return bool(self.files(TABLES))


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which files the result gets, and from where."""

    files: dict[str, Path]
    tokenizer: Tokenizer
    """The one whose vocabulary and end token hold."""
    supplied: tuple[str, ...] = ()
    """Files that are the base's."""
    template: str | None = None
    """The base's chat template, where it is in no file of its own."""
    notes: tuple[Refusal, ...] = ()


def choose(own: Place, base: Place | None) -> Chosen:
    """The tokenizer files of the result. Raises Refused when some are missing that the base can't provably supply."""
    chosen = _whole(own, base) if own.has_vocabulary else _from_base(own, base)
    _check_range(chosen.tokenizer, own.rows, base)
    return _with_template(chosen, own, base)


def _whole(own: Place, base: Place | None) -> Chosen:
    files = own.files((*TOKENIZER_FILES, *PROCESSOR_FILES))
    if own.tokenizer.settings or SETTINGS in files:
        return Chosen(files, own.tokenizer)
    if base is None or not _same_vocabulary(own.tokenizer, base.tokenizer):
        _refuse_missing(SETTINGS, "the base's own vocabulary differs" if base else "no base was named")
    supplied = base.files((SETTINGS, "special_tokens_map.json"))
    return Chosen({**supplied, **files}, base.tokenizer, tuple(sorted(supplied)))


def _from_base(own: Place, base: Place | None) -> Chosen:
    if base is None or not base.has_vocabulary:
        _refuse_missing(VOCABULARY, "no base was named" if base is None else "the base has none either")
    if own.rows != base.rows:
        _refuse_missing(
            VOCABULARY, f"the model has {own.rows:,} tokens and the base {base.rows:,}, so the base's is another one"
        )
    strangers = _strangers(own.tokenizer, base.tokenizer)
    if strangers:
        _refuse_missing(VOCABULARY, f"tokenizer_config.json names tokens that the base doesn't have: {strangers}")
    mine = own.files((SETTINGS, "special_tokens_map.json", *PROCESSOR_FILES))
    files = {**base.files((*TOKENIZER_FILES, *PROCESSOR_FILES)), **mine}
    supplied = tuple(sorted(name for name in files if name not in mine))
    return Chosen(files, own.tokenizer if own.tokenizer.settings else base.tokenizer, supplied)


def _strangers(own: Tokenizer, base: Tokenizer) -> str:
    """Added tokens of tokenizer_config.json that the base's vocabulary has not under the same id."""
    added = own.settings.get("added_tokens_decoder")
    if not isinstance(added, dict) or base.vocabulary is None:
        return ""
    texts = {number: row.get("content") for number, row in added.items() if isinstance(row, dict)}
    tokens = base.vocabulary.tokens
    return ", ".join(
        repr(text) for number, text in list(texts.items()) if not (number.isdigit() and tokens.get(int(number)) == text)
    )[:200]


def _check_range(tokenizer: Tokenizer, rows: int, base: Place | None) -> None:
    """Refuse ids without a row, unless the base is known to ship its tokenizer so (Gemma 3 1B does)."""
    if tokenizer.vocabulary is None or not rows:
        return
    beyond = {number: text for number, text in tokenizer.vocabulary.tokens.items() if number >= rows}
    theirs = base.tokenizer.vocabulary.tokens if base and base.tokenizer.vocabulary else {}
    added = [text for number, text in beyond.items() if theirs.get(number) != text]
    if added:
        refuse(
            ProblemCode.VOCABULARY_MISMATCH,
            f"The tokenizer has {len(added)} tokens beyond the {rows:,} rows of the embedding ({added[0]!r}, …).",
            VOCABULARY,
            "Tokens were added and their embeddings are not in the weights: save with save_embedding_layers=True, or "
            "give the tokenizer that belongs to the weights.",
        )


def _with_template(chosen: Chosen, own: Place, base: Place | None) -> Chosen:
    template = own.files((TEMPLATE,))
    if template or own.tokenizer.template is not None:
        return replace(chosen, files={**chosen.files, **template})
    theirs = base.files((TEMPLATE,)) if base else {}
    if base and base.tokenizer.template is not None and _agrees(chosen, base):
        inline = None if theirs or SETTINGS in chosen.supplied else base.tokenizer.template
        supplied = (*chosen.supplied, TEMPLATE) if theirs or inline else chosen.supplied
        return replace(chosen, files={**chosen.files, **theirs}, supplied=supplied, template=inline)
    note = Refusal(
        WarningCode.CHAT_TEMPLATE,
        "There is no chat template, so the result completes text and doesn't chat.",
        TEMPLATE,
        "Put the template it was trained with beside it as chat_template.jinja.",
    )
    return replace(chosen, notes=(*chosen.notes, note))


def _agrees(chosen: Chosen, base: Place) -> bool:
    """Whether the base's template speaks of the tokens the result has."""
    return VOCABULARY in chosen.supplied or _same_vocabulary(chosen.tokenizer, base.tokenizer)


def _same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    if one.vocabulary is None or other.vocabulary is None:
        return False
    return one.vocabulary.tokens == other.vocabulary.tokens and one.vocabulary.rules == other.vocabulary.rules


def _refuse_missing(name: str, why: str) -> NoReturn:
    refuse(
        ExportCode.TOKENIZER_MISSING,
        f"There is no {name}, and it can't be taken from the base: {why}.",
        name,
        "Put the tokenizer's files beside the weights with tokenizer.save_pretrained(DIR), or name the base it was "
        "trained on with --model.",
    )
