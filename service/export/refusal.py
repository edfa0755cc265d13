"""How `convert` says no: every reason at once, in the form the rest of the house gives its problems."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.errors import LoradockError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Code", "ExportCode", "Refusal", "Refused", "Undecided", "refuse"]


class ExportCode(StrEnum):
    """Reasons that only a conversion knows, beside those of `ProblemCode`."""

    AMBIGUOUS = "ambiguous"
    """More than one model or adapter could be meant."""
    BASE_NEEDED = "base_needed"
    """Something can only be taken from, or proven by, the base model."""
    OUTPUT_EXISTS = "output_exists"
    QUANTISED = "quantised"
    TOKENIZER_MISSING = "tokenizer_missing"
    UNFAITHFUL = "unfaithful"
    """The verification found the result to differ from what PEFT computes."""


Code = ProblemCode | WarningCode | ExportCode


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason not to convert (or, as a note, something worth a word): the shape of `adapter.spec.Problem`."""

    code: Code
    message: str
    where: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The form of the public contract: code, message, where, remedy."""
        return {"code": str(self.code), "message": self.message, "where": self.where, "remedy": self.remedy}


class Refused(LoradockError):
    """The source can't be converted right; carries every reason found."""

    code = "conversion_refused"

    def __init__(self, reasons: Sequence[Refusal | Problem]) -> None:
        count = "1 reason" if len(reasons) == 1 else f"{len(reasons)} reasons"
        super().__init__(f"The conversion was refused for {count}.")
        self.reasons = tuple(reasons)


class Undecided(LoradockError):
    """Whether the source can be converted can't be told here: nothing readable, no base, no library for it."""

    code = "conversion_undecided"


def refuse(code: Code, message: str, where: str = "", remedy: str = "") -> NoReturn:
    """Raise Refused for one reason."""
    raise Refused([Refusal(code, message, where, remedy)])
