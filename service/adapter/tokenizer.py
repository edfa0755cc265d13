"""A tokenizer and its chat template as files: which id has which text, how text is cut, what ends a turn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from service.adapter.files import CONFIG_LIMIT, TOKENIZER_LIMIT, parse_object, read_bytes
from service.adapter.spec import Problem, ProblemCode
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TEMPLATE = "chat_template.jinja"
VOCABULARY = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (
    VOCABULARY,
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Every file transformers reads a text tokenizer from; the weights' directory may hold any of them."""
ID_LIMIT = 1 << 24
ENDLESS = 1e29
"""transformers writes 10^30 for a tokenizer without a length of its own."""
_MEANINGFUL = ("bos_token", "eos_token", "unk_token", "add_bos_token", "add_eos_token", "add_prefix_space")
"""What of tokenizer_config.json changes a prompt's ids; padding and lengths don't."""


@dataclass(frozen=True)
class Vocabulary:
    """tokenizer.json: id → text, and the rules by which text is cut."""

    digest: str
    tokens: Mapping[int, str] = field(repr=False)
    rules: str = field(repr=False)
    """SHA-256 of everything else: normaliser, merges, post-processor and so on."""

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Text → id."""
        return {text: number for number, text in self.tokens.items()}


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of one directory; parts that the directory lacks are None or empty."""

    vocabulary: Vocabulary | None
    settings: Mapping[str, Any] = field(repr=False)
    template: str | None

    @property
    def present(self) -> bool:
        """Whether the directory has a tokenizer at all."""
        return self.vocabulary is not None or bool(self.settings)

    @property
    def end_token(self) -> str | None:
        """The text of the end-of-turn token, as tokenizer_config.json has it."""
        return _token_text(self.settings.get("eos_token"))

    @property
    def meaning(self) -> Mapping[str, Any]:
        """The settings that change a prompt's ids or a template's text."""
        return {name: _token_text(value) or value for name in _MEANINGFUL if (value := self.settings.get(name))}

    @property
    def max_length(self) -> float | None:
        """`model_max_length` where it is a real length, in tokens."""
        length: Any = self.settings.get("model_max_length")
        return float(length) if type(length) in {int, float} and 0 < length < ENDLESS else None


def read_tokenizer(directory: Path, *, like: Tokenizer | None = None, follow: bool = False) -> Tokenizer:
    """Read a directory's tokenizer files and chat template.

    A tokenizer.json with the bytes of `like`'s is not parsed again. Raises Rejected (`config_invalid`, `too_large`,
    `path_forbidden`) naming the file.
    """
    settings = _object(directory, SETTINGS, CONFIG_LIMIT * 16, follow=follow) or {}
    return Tokenizer(
        vocabulary=_read_vocabulary(directory, like.vocabulary if like else None, follow=follow),
        settings=settings,
        template=_read_template(directory, settings, follow=follow),
    )


def _read_vocabulary(directory: Path, like: Vocabulary | None, *, follow: bool) -> Vocabulary | None:
    data = read_bytes(directory, VOCABULARY, TOKENIZER_LIMIT, follow=follow)
    if data is None:
        return None
    digest = hashlib.sha256(data).hexdigest()
    if like is not None and like.digest == digest:
        return like
    try:
        document = parse_object(data)
        model = {**document["model"]}
        tokens = {**_model_tokens(model.pop("vocab", {})), **_added_tokens(document.pop("added_tokens", None) or [])}
        rules = _digest_rules(document, model)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Rejected([_unreadable(VOCABULARY, error)]) from None
    return Vocabulary(digest, tokens, rules)


def _digest_rules(document: Mapping[str, Any], model: dict[str, Any]) -> str:
    """Digest what cuts text into tokens. Older and newer tokenizers write the same merges as texts or as pairs."""
    merges = model.get("merges") or ()
    model["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    rules = json.dumps({**document, "model": model, "truncation": None, "padding": None}, sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()


def _model_tokens(vocab: Any) -> dict[int, str]:
    """Token ids of a table (BPE, WordPiece) or of a list of pairs with scores (Unigram)."""
    pairs = vocab.items() if isinstance(vocab, dict) else ((text, number) for number, (text, _) in enumerate(vocab))
    tokens = {number: text for text, number in pairs}
    return _checked(tokens)


def _added_tokens(rows: Any) -> dict[int, str]:
    return _checked({row["id"]: row["content"] for row in rows})


def _checked(tokens: dict[Any, Any]) -> dict[int, str]:
    for number, text in tokens.items():
        if type(number) is not int or not 0 <= number < ID_LIMIT or not isinstance(text, str):
            raise ValueError("a token has no proper id and text")
    return tokens


def _read_template(directory: Path, settings: Mapping[str, Any], *, follow: bool) -> str | None:
    data = read_bytes(directory, TEMPLATE, CONFIG_LIMIT, follow=follow)
    if data is not None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected([_unreadable(TEMPLATE, error)]) from None
    inline = settings.get("chat_template")
    if isinstance(inline, list):
        named = {row.get("name"): row.get("template") for row in inline if isinstance(row, dict)}
        inline = named.get("default")
    return inline if isinstance(inline, str) else None


def _object(directory: Path, name: str, limit: int, *, follow: bool) -> dict[str, Any] | None:
    data = read_bytes(directory, name, limit, follow=follow)
    if data is None:
        return None
    try:
        return parse_object(data)
    except ValueError as error:
        raise Rejected([_unreadable(name, error)]) from None


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _unreadable(name: str, error: Exception) -> Problem:
    return Problem(
        ProblemCode.CONFIG_INVALID,
        f"{name} can't be read: {str(error)[:200]}.",
        name,
        "Save the tokenizer again with tokenizer.save_pretrained(DIR), or leave it out to use the base's.",
    )
