"""Everything a conversion is made from, gathered and held against each other before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.adapter.files import CONFIG_LIMIT, parse_object, read_bytes
from service.adapter.spec import ProblemCode
from service.export.complete import stretch_problem, stretched
from service.export.refusal import ExportCode, Refusal, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from service.adapter.base import Base
    from service.adapter.safetensors_header import TensorEntry
    from service.export.plan import Plan
    from service.export.proof import Model
    from service.export.request import Request
    from service.export.tensors import Tensors
    from service.export.vocabulary import Chosen

PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8")
"""Types that only quantised matrices have."""
PACKED_NAMES = (".qweight", ".weight_packed", ".absmax", ".SCB", "_blocks", ".weight_scale", ".weight_scale_inv")
MATRIX = 2


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What the result is made of."""

    model: Model
    """The weights that are read and written anew: an adapter's base, or the source itself."""
    adapter: Tensors | None
    plan: Plan
    tied: bool | None
    """Whether there is no output layer beside the embedding; None when only the numbers can tell."""
    config: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    tokenizer: Chosen
    hidden: int
    layers: int
    base: Base | None
    base_tensors: Tensors | None
    notes: tuple[Refusal, ...]
    supplied: tuple[str, ...]
    """Files that the source lacked."""

    @property
    def end_token(self) -> int | None:
        """The tokenizer's own end of a turn."""
        tokenizer = self.tokenizer.tokenizer
        if tokenizer.vocabulary is None or tokenizer.end_token is None:
            return None
        return tokenizer.vocabulary.ids.get(tokenizer.end_token)


def read_object(directory: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of the source or the base, None when there is none. Raises Refused when it isn't JSON."""
    data = read_bytes(directory, name, CONFIG_LIMIT * 16, follow=True)
    if data is None:
        return None
    try:
        return parse_object(data)
    except ValueError as error:
        refuse(
            ProblemCode.CONFIG_INVALID,
            f"{name} can't be read: {str(error)[:200]}.",
            name,
            "Take it away to have it made anew, or copy it again.",
        )


def require_unquantised(entries: Mapping[str, TensorEntry], whose: str) -> None:
    """Refuse weights that are packed in fewer than 16 bits: they can't be widened without loss, nor merged into."""
    packed = next(
        (
            name
            for name, entry in entries.items()
            if (entry.dtype in PACKED and len(entry.shape) >= MATRIX)
            or name.endswith(PACKED_NAMES)
            or ".quant_state." in name
        ),
        None,
    )
    if packed is not None:
        refuse(
            ExportCode.QUANTISED,
            f"{whose} is quantised: {packed} is stored as {entries[packed].dtype}.",
            packed,
            "Name the 16-bit base with --model, for a merged model save it with "
            'save_pretrained_merged(DIR, tokenizer, save_method="merged_16bit").',
        )


def with_positions(
    config: Mapping[str, Any], trained: float | None, base: float | None, request: Request, *, certain: bool
) -> tuple[dict[str, Any], tuple[Refusal, ...]]:
    """The configuration with positions as they were trained, and a note where that isn't known.

    `trained` and `base` are the lengths of the source's and of the base's tokenizer. When the base's is `certain`, a
    longer one was set in training and the command has to say what it meant; else it may be as the vendor had it.
    """
    if request.rope_factor is not None:
        return dict(config) if request.rope_factor == 1 else stretched(config, request.rope_factor), ()
    problem = stretch_problem(trained, base, config)
    if problem is None:
        return dict(config), ()
    if certain:
        refuse(problem.code, problem.message, problem.where, problem.remedy)
    return dict(config), (problem,)
