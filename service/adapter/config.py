"""adapter_config.json: what PEFT wrote about an adapter, checked field by field."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from service.adapter.files import parse_object
from service.adapter.patterns import Patterns, unacceptable_key
from service.adapter.spec import Problem, ProblemCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONFIG = "adapter_config.json"
RESAVE = "Save it again with model.save_pretrained(DIR) and copy the whole directory."
RANK_LIMIT = 4096
"""Far above what any engine takes (512); the memory that judging a pair takes grows with its square."""
ALPHA_LIMIT = 1e9
TEXT_LIMIT = 1 << 16
"""Characters of one text; the longest regular expressions Unsloth writes into target_modules have about 700."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of adapter_config.json that decides what is computed. What is not sound there is None or empty here."""

    fields: Mapping[str, Any] = field(repr=False)
    """The whole document."""
    r: int | None
    alpha: float | None
    rslora: bool
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    base: str
    """`base_model_name_or_path`; empty when it is missing."""

    def rank(self, module: str) -> int | None:
        """The rank of the module at this path."""
        rank = self.rank_pattern.find(module)
        return self.r if rank is None else rank

    def module_alpha(self, module: str) -> float | None:
        """The alpha of the module at this path."""
        alpha = self.alpha_pattern.find(module)
        return self.alpha if alpha is None else alpha

    def scale(self, module: str) -> float | None:
        """What B·A is multiplied with: alpha/r, or alpha/√r for rank-stabilised LoRA."""
        rank, alpha = self.rank(module), self.module_alpha(module)
        if rank is None or alpha is None:
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def parse_config(data: bytes) -> tuple[AdapterConfig | None, list[Problem]]:
    """Read adapter_config.json; all that is wrong with its fields' forms. None only when it is no JSON object."""
    try:
        fields = parse_object(data)
    except ValueError as error:
        return None, [_invalid(CONFIG, f"adapter_config.json can't be read: {printable(str(error))}.")]
    config = AdapterConfig(
        fields=fields,
        r=_sound(fields.get("r"), is_rank, None),
        alpha=_sound(fields.get("lora_alpha"), _is_alpha, None),
        rslora=fields.get("use_rslora") is True,
        rank_pattern=Patterns(_sound(fields.get("rank_pattern") or {}, _is_rank_table, {})),
        alpha_pattern=Patterns(_sound(fields.get("alpha_pattern") or {}, _is_alpha_table, {})),
        base=_sound(fields.get("base_model_name_or_path"), _is_text, ""),
    )
    return config, [*_missing(fields), *_malformed(fields), *_contradictions(fields)]


def is_rank(value: Any) -> bool:
    """Whether the value is a rank: a positive integer up to `RANK_LIMIT`."""
    return type(value) is int and 0 < value <= RANK_LIMIT


def _sound(value: Any, test: Callable[[Any], bool], otherwise: Any) -> Any:
    return value if test(value) else otherwise


def _is_alpha(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value <= ALPHA_LIMIT


def _is_rank_table(value: Any) -> bool:
    return _is_table(value, is_rank)


def _is_alpha_table(value: Any) -> bool:
    return _is_table(value, _is_alpha)


def _is_table(value: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(test(item) for item in value.values()) and unacceptable_key(value) is None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_LIMIT


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_names_or_expression(value: Any) -> bool:
    return _is_names(value) or (_is_text(value) and _is_expression(value))


def _is_expression(value: str) -> bool:
    """Whether it is a regular expression; it is compiled here and never run."""
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_fraction(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value <= 1


_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (is_rank, "a positive integer"),
    "lora_alpha": (_is_alpha, "a number that is not negative"),
    "target_modules": (_is_names_or_expression, "a list of module names or a regular expression"),
    "exclude_modules": (_is_names_or_expression, "a list of module names or a regular expression"),
    "target_parameters": (_is_names, "a list of names"),
    "modules_to_save": (_is_names, "a list of names"),
    "rank_pattern": (_is_rank_table, "a table from simple module patterns to positive integers"),
    "alpha_pattern": (_is_alpha_table, "a table from simple module patterns to numbers"),
    "layers_to_transform": (lambda value: type(value) is int or _is_integers(value), "a list of layer numbers"),
    "layers_pattern": (_is_names_or_expression, "a pattern or a list of patterns"),
    "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "task_type": (_is_text, "a text"),
    "bias": (_is_text, "a text"),
    "lora_dropout": (_is_fraction, "a number from 0 to 1"),
    "init_lora_weights": (lambda value: _is_bool(value) or _is_text(value), "true, false or a text"),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "lora_bias", "use_qalora", "fan_in_fan_out", "ensure_weight_tying"),
        (_is_bool, "true or false"),
    ),
}
_NEVER_NULL = frozenset(
    {"r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights", "use_rslora", "use_dora", "lora_bias"}
)


def _missing(fields: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in fields:
            yield _invalid(name, f"adapter_config.json has no {name}.")


def _malformed(fields: Mapping[str, Any]) -> Iterator[Problem]:
    for name, (test, form) in _FORMS.items():
        value = fields.get(name)
        if name not in fields or (value is None and name not in _NEVER_NULL):
            continue
        if not test(value):
            yield _invalid(name, f"{name} is not {form}: {clip(value)}.")


def _contradictions(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """What PEFT's own configuration refuses to hold together."""
    regex = isinstance(fields.get("target_modules"), str)
    for name in ("layers_to_transform", "layers_pattern"):
        if regex and fields.get(name) is not None:
            yield _invalid(name, f"{name} can't be used when target_modules is a regular expression.")
    if fields.get("layers_pattern") and fields.get("layers_to_transform") is None:
        yield _invalid("layers_pattern", "layers_pattern needs layers_to_transform.")
    if not fields.get("target_modules", True) and not fields.get("target_parameters"):
        yield _invalid("target_modules", "The configuration targets no module.")


def clip(value: Any, length: int = 100) -> str:
    """A stranger's value as it may stand in a message: as JSON, printable and short."""
    return printable(json.dumps(value, ensure_ascii=False), length)


def printable(text: str, length: int = 200) -> str:
    """A text as it may stand in a message, whoever wrote it."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:length])
    return shown if len(text) <= length else f"{shown}…"


def _invalid(where: str, message: str) -> Problem:
    return Problem(ProblemCode.CONFIG_INVALID, message, where, RESAVE)
