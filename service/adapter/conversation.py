"""How an adapter wants to be spoken to: its chat template, tokenizer, end tokens and context against the base's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, TemplateSyntaxError

from service.adapter.config import clip, printable
from service.adapter.features import MERGE
from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.adapter.tokenizer import SETTINGS, TEMPLATE, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.adapter.base import Base
    from service.adapter.tokenizer import Tokenizer, Vocabulary

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "</s>",
)
"""What the families of chat templates write at the end of an assistant's turn."""
RENAMED_LIMIT = 64
"""Ids whose text may differ: trainers rename a few special tokens; another tokenizer differs in thousands."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be done for an adapter's requests besides its weights, and what there is to say about it."""

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    stop_token_ids: tuple[int, ...]
    own_template: bool
    own_tokenizer: bool


def compare(tokenizer: Tokenizer, base: Base) -> Conversation:
    """Hold an adapter's tokenizer and template against the base's."""
    own_template = tokenizer.template is not None and tokenizer.template != base.chat_template
    own_tokenizer = tokenizer.present and _differs(tokenizer, base.tokenizer)
    ends = _end_tokens(tokenizer, base, own_template=own_template)
    stops = tuple(sorted(set(ends.values()) - base.end_token_ids))
    warnings = [
        *_template_warnings(own_template=own_template),
        *_tokenizer_warnings(tokenizer, base, own_tokenizer=own_tokenizer),
        *_end_token_warnings(ends, base),
        *_context_warnings(tokenizer, base),
    ]
    problems = [
        *_vocabulary_problems(tokenizer, base),
        *(_template_problems(tokenizer.template) if own_template else ()),
    ]
    return Conversation(tuple(problems), tuple(warnings), stops, own_template, own_tokenizer)


def _differs(tokenizer: Tokenizer, base: Tokenizer) -> bool:
    ours, theirs = tokenizer.vocabulary, base.vocabulary
    vocabulary = ours is not None and (theirs is None or ours.tokens != theirs.tokens or ours.rules != theirs.rules)
    return vocabulary or (bool(tokenizer.settings) and tokenizer.meaning != base.meaning)


def _vocabulary_problems(tokenizer: Tokenizer, base: Base) -> Iterator[Problem]:
    ids = _ids(tokenizer)
    beyond = sorted(number for number in ids if number >= base.vocab_size)
    if beyond:
        yield Problem(
            ProblemCode.VOCABULARY_MISMATCH,
            f"Its tokenizer goes beyond the base's vocabulary of {base.vocab_size:,}: "
            f"{clip(ids[beyond[0]])} has the id {beyond[0]}, the last id is {beyond[-1]}.",
            VOCABULARY,
            f"Tokens were added in training, and their embeddings are not part of a LoRA. {MERGE}",
        )
    ours, theirs = tokenizer.vocabulary, base.tokenizer.vocabulary
    if ours is not None and theirs is not None:
        other = _renamed(ours, theirs)
        if len(other) > RENAMED_LIMIT:
            yield Problem(
                ProblemCode.VOCABULARY_MISMATCH,
                f"Its tokenizer is another one: {len(other):,} of the base's {len(theirs.tokens):,} ids "
                "stand for something else.",
                VOCABULARY,
                "Check that the adapter was trained on this base; copy the tokenizer it was trained with.",
            )
    if tokenizer.end_token and ours is not None and tokenizer.end_token not in ours.ids:
        yield Problem(
            ProblemCode.VOCABULARY_MISMATCH,
            f"Its end token {clip(tokenizer.end_token)} is not in its own vocabulary.",
            f"{SETTINGS}: eos_token",
            f"The token was added in training, and its embedding is not part of a LoRA. {MERGE}",
        )


def _ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Every id the files give a text, those that only tokenizer_config.json adds included."""
    ids = dict(tokenizer.vocabulary.tokens) if tokenizer.vocabulary else {}
    added = tokenizer.settings.get("added_tokens_decoder")
    for number, row in added.items() if isinstance(added, dict) else ():
        if number.isdecimal() and len(number) < 10 and isinstance(row, dict):  # noqa: PLR2004 (digits)
            ids.setdefault(int(number), str(row.get("content")))
    return ids


def _template_problems(template: str | None) -> Iterator[Problem]:
    """A template that can't be parsed; it is not rendered, since a hostile one may never end."""
    try:
        # The tags that mark an assistant's words for training are transformers' own and mean nothing here.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template or ""))  # noqa: S701
    except (TemplateSyntaxError, RecursionError) as error:
        yield Problem(
            ProblemCode.CONFIG_INVALID,
            f"Its chat template is not a Jinja template: {printable(str(error))}.",
            TEMPLATE,
            "Save the tokenizer again: tokenizer.save_pretrained(DIR). Without a template the base's is used.",
        )


def _template_warnings(*, own_template: bool) -> Iterator[Problem]:
    if own_template:
        yield Problem(
            WarningCode.CHAT_TEMPLATE,
            "It was trained under a chat template of its own, which its chats are rendered with.",
            TEMPLATE,
            "Nothing has to be done. Clients that send raw prompts have to render it themselves.",
        )


def _tokenizer_warnings(tokenizer: Tokenizer, base: Base, *, own_tokenizer: bool) -> Iterator[Problem]:
    if not tokenizer.present:
        yield Problem(
            WarningCode.NO_TOKENIZER,
            "It came without a tokenizer; the base's is used.",
            SETTINGS,
            "If training changed the chat template or the tokens, add them: tokenizer.save_pretrained(DIR).",
        )
    elif own_tokenizer:
        yield Problem(
            WarningCode.TOKENIZER,
            f"Its tokenizer cuts or names some text differently from the base's ({_difference(tokenizer, base)}); "
            "its own is used for its requests.",
            VOCABULARY if tokenizer.vocabulary else SETTINGS,
            "Nothing has to be done.",
        )


def _difference(tokenizer: Tokenizer, base: Base) -> str:
    ours, theirs = tokenizer.vocabulary, base.tokenizer.vocabulary
    renamed = _renamed(ours, theirs)
    if renamed:
        number = renamed[0]
        before, after = (vocabulary.tokens.get(number) for vocabulary in (theirs, ours) if vocabulary)
        return f"id {number} is {clip(after)} instead of {clip(before)}"
    if ours is not None and theirs is not None and ours.tokens != theirs.tokens:
        return f"{len(set(ours.tokens) - set(theirs.tokens))} more tokens"
    return "other rules" if ours is not None and theirs is not None and ours.rules != theirs.rules else SETTINGS


def _renamed(ours: Vocabulary | None, theirs: Vocabulary | None) -> list[int]:
    if ours is None or theirs is None or ours is theirs:
        return []
    return [number for number, text in theirs.tokens.items() if ours.tokens.get(number) != text]


def _end_tokens(tokenizer: Tokenizer, base: Base, *, own_template: bool) -> dict[str, int]:
    """Text → id of what ends the adapter's turns: its end token, and the turn's end its own template writes."""
    vocabulary = tokenizer.vocabulary or base.tokenizer.vocabulary
    if vocabulary is None:
        return {}
    template = tokenizer.template if own_template else None
    texts = {tokenizer.end_token or "", *(mark for mark in TURN_ENDS if mark in (template or ""))}
    ids = {text: vocabulary.ids[text] for text in sorted(texts) if text in vocabulary.ids}
    return {text: number for text, number in ids.items() if number < base.vocab_size}


def _end_token_warnings(ends: Mapping[str, int], base: Base) -> Iterator[Problem]:
    theirs = base.tokenizer.vocabulary
    for text, number in ends.items():
        known = theirs.tokens.get(number) if theirs else None
        if number not in base.end_token_ids:
            message = f"It ends its turns with {clip(text)} (id {number}), where the base doesn't stop; it does."
        elif known is not None and known != text:
            message = f"Its tokenizer calls the base's end token {clip(known)} (id {number}) {clip(text)}."
        else:
            continue
        yield Problem(WarningCode.END_TOKEN, message, f"{SETTINGS}: eos_token", "Nothing has to be done.")


def _context_warnings(tokenizer: Tokenizer, base: Base) -> Iterator[Problem]:
    trained, limit = tokenizer.max_length, base.max_position_embeddings
    if trained is None or limit is None:
        return
    # Some vendors' own tokenizers announce more than the model has positions for.
    if trained > max(limit, base.tokenizer.max_length or 0):
        yield Problem(
            WarningCode.ROPE_EXTENDED,
            f"It was trained with a context of {trained:,.0f} tokens; the base has {limit:,} positions and is served "
            "without the scaling that training added.",
            f"{SETTINGS}: model_max_length",
            "Answers to long prompts may be poor. Serve a base with the same rope scaling, or train with "
            f"max_seq_length={limit}.",
        )
