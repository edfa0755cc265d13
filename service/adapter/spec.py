"""What an adapter is, in words every other room uses: names, digests, problems, reports."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class ProblemCode(StrEnum):
    """Why an adapter is not served. A stable list: members are added, never renamed."""

    CONFIG_MISSING = "config_missing"
    CONFIG_INVALID = "config_invalid"
    WEIGHTS_MISSING = "weights_missing"
    WEIGHTS_INCOMPLETE = "weights_incomplete"
    WEIGHTS_INVALID = "weights_invalid"
    WEIGHTS_PICKLE = "weights_pickle"
    WEIGHTS_DTYPE = "weights_dtype"
    NOT_LORA = "not_lora"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    RANK_TOO_LARGE = "rank_too_large"
    RANK_MISMATCH = "rank_mismatch"
    SHAPE_MISMATCH = "shape_mismatch"
    UNKNOWN_MODULE = "unknown_module"
    PAIR_MISSING = "pair_missing"
    BASE_MISMATCH = "base_mismatch"
    NOT_FINITE = "not_finite"
    OVERFLOW = "overflow"
    NO_EFFECT = "no_effect"
    VOCABULARY_MISMATCH = "vocabulary_mismatch"
    TOO_LARGE = "too_large"
    PATH_FORBIDDEN = "path_forbidden"
    NAME_INVALID = "name_invalid"
    NAME_TAKEN = "name_taken"
    NO_CAPACITY = "no_capacity"


class WarningCode(StrEnum):
    """What serves correctly and still deserves a word."""

    BASE_QUANTISED = "base_quantised"
    BASE_UNVERIFIED = "base_unverified"
    CHAT_TEMPLATE = "chat_template"
    END_TOKEN = "end_token"  # noqa: S105 (no password)
    ROPE_EXTENDED = "rope_extended"
    WEIGHTS_FLOAT32 = "weights_float32"
    PERMISSIONS = "permissions"
    NO_TOKENIZER = "no_tokenizer"
    NAMES_REPAIRED = "names_repaired"
    LAYOUT_REPAIRED = "layout_repaired"
    MODULES_DROPPED = "modules_dropped"
    FILES_IGNORED = "files_ignored"
    WEAK_EFFECT = "weak_effect"
    PARTIAL = "partial"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or, as a warning, worth a word), where, and what the user should do.

    `where` is a file, a configuration field or a tensor name, never a path of the serving machine.
    """

    code: ProblemCode | WarningCode
    message: str
    where: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The form of the contract: code, message, where, remedy."""
        return {
            "code": str(self.code),
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class Repairs:
    """What the serving copy changes so that the engine reads what was trained; the user's files stay as they are."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Every tensor that is served → the name it is served under. What is missing here is left out."""
    grouped: Mapping[str, int] = field(default_factory=dict)
    """lora_B tensors packed expert by expert → number of experts; served rank by rank."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything an inspection found out about one adapter directory."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    base: str = ""
    """`base_model_name_or_path` as the adapter names it."""
    rank: int = 0
    """The largest rank of any module, as the tensors have it."""
    modules: Mapping[str, int] = field(default_factory=dict)
    """Module path in the base → rank of its pair."""
    dtype: str = ""
    """The weights' type on disk, in safetensors' words (F32, BF16, …)."""
    bytes: int = 0
    """Size of the weights as received."""
    strength: float | None = None
    """The largest ‖scale·B·A‖ / ‖W‖ over all modules; None where numbers were not read."""
    strongest: str = ""
    """The module it belongs to."""
    stop_token_ids: tuple[int, ...] = ()
    """End-of-turn tokens of the adapter that the base's own don't include."""
    own_template: bool = False
    """Whether its chat template differs from the base's."""
    own_tokenizer: bool = False
    """Whether its tokenizer differs from the base's in what it does to text."""
    repairs: Repairs = field(default_factory=Repairs)

    @property
    def accepted(self) -> bool:
        """Whether nothing forbids serving it."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """What `loradock check --json` prints."""
        return {
            "accepted": self.accepted,
            "problems": [problem.as_dict() for problem in self.problems],
            "warnings": [warning.as_dict() for warning in self.warnings],
            "base": self.base,
            "rank": self.rank,
            "modules": len(self.modules),
            "dtype": self.dtype,
            "bytes": self.bytes,
            "strength": self.strength,
            "strongest": self.strongest,
            "stop_token_ids": list(self.stop_token_ids),
            "own_template": self.own_template,
            "own_tokenizer": self.own_tokenizer,
        }


def name_problem(name: str) -> Problem | None:
    """Why `name` can't be an adapter's name, or None when it can."""
    if NAME.fullmatch(name):
        return None
    return Problem(
        ProblemCode.NAME_INVALID,
        f"{name[:100]!r} is not a name for an adapter.",
        "name",
        "Use 1 to 96 letters, digits, dots, hyphens or underscores, beginning with a letter or digit.",
    )


def codes(problems: Sequence[Problem]) -> list[str]:
    """The codes of some problems, in order, for logs and tests."""
    return [str(problem.code) for problem in problems]
