"""An adapter's tensors judged by the header alone: known names, whole pairs, shapes of the base, configured rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.adapter.config import clip
from service.adapter.features import MERGE, RETRAIN
from service.adapter.modules import MATRIX, NOT_PROJECTIONS
from service.adapter.placement import Placed, Placement, parameter, place, served_name
from service.adapter.spec import Problem, ProblemCode, Repairs, WarningCode
from service.adapter.targets import judge_targets
from service.adapter.tensor_names import Part, TensorName, parse_name
from service.adapter.weights import FLOATS, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.adapter.base import Base
    from service.adapter.config import AdapterConfig
    from service.adapter.findings import Findings
    from service.adapter.safetensors_header import Header

WRONG_BASE = "Serve it on the base model it was trained on."
SAVE_AGAIN = "Save it again from the model that was trained: model.save_pretrained(DIR)."
LAYOUTS = ("rank_major", "grouped_by_expert")
"""How the columns of fused experts' lora_B can be packed: rank by rank, or expert by expert."""
_VISION = ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.", "audio_tower.")
_FEATURES: Mapping[Part, tuple[str, str]] = {
    Part.MAGNITUDE: ("It holds DoRA magnitudes; the engine has no weight-decomposed LoRA.", MERGE),
    Part.BIAS: ("It holds biases of lora_B, which the engine can't add.", MERGE),
    Part.TOKENS: ("It holds trained embeddings of single tokens, which are shared by all who are served.", MERGE),
    Part.EMBEDDING: ("It holds a LoRA of the embedding, which is shared by all who are served.", MERGE),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """What the header says the adapter is."""

    pairs: tuple[Pair, ...] = ()
    """Pairs whose numbers can be read and compared."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Module path in the base → rank."""
    kept: tuple[str, ...] = ()
    """Full tensors of the model (modules_to_save)."""
    repairs: Repairs = field(default_factory=Repairs)
    dtype: str = ""


def judge(header: Header, config: AdapterConfig | None, base: Base, findings: Findings) -> Judged:
    """Judge every tensor of the file; problems and warnings are added to `findings`."""
    names = {tensor: parse_name(tensor) for tensor in header.tensors}
    if not any(name.part in {Part.A, Part.B} for name in names.values()):
        message = "The file holds neither a lora_A nor a lora_B."
        findings.problems.append(Problem(ProblemCode.NO_EFFECT, message, "", SAVE_AGAIN))
    findings.problems += _foreign(names)
    dtype = _dtype(header, findings)
    placement = place({tensor: name for tensor, name in names.items() if name.part in {Part.A, Part.B}}, base)
    findings.problems += (_unknown(module, tensor) for module, tensor in placement.unknown.items())
    findings.problems += _twice(names, placement)
    findings.problems += _unknown_layout(config)
    grouped = _is_grouped(config) if config else False
    pairs: list[Pair] = []
    for placed in placement.placed:
        problems = list(_pair_problems(placed, header, config, base))
        findings.problems += problems
        if not problems and config:
            pairs += _pair(placed, header, config, _experts(placed, base), grouped=grouped)
    repairs = _repairs(placement.placed, pairs)
    findings.warnings += _repair_warnings(repairs)
    if config and placement.placed:
        judge_targets(placement.placed, config.fields, base, findings)
    kept = tuple(tensor for tensor, name in names.items() if name.part is Part.FULL)
    return Judged(tuple(pairs), _ranks(placement.placed, header, base), kept, repairs, dtype)


def _foreign(names: Mapping[str, TensorName]) -> Iterator[Problem]:
    for tensor, name in names.items():
        if name.part in _FEATURES:
            message, remedy = _FEATURES[name.part]
            yield Problem(ProblemCode.UNSUPPORTED_FEATURE, message, tensor, remedy)
        elif name.part is Part.FOREIGN:
            yield Problem(
                ProblemCode.UNSUPPORTED_FEATURE,
                "It is no tensor of a LoRA adapter.",
                tensor,
                RETRAIN,
            )


def _twice(names: Mapping[str, TensorName], placement: Placement) -> Iterator[Problem]:
    """Two tensors for one matrix, under two spellings of its name or of its module's path."""
    paths = {placed.trained: placed.module for placed in placement.placed}
    seen: dict[tuple[Part, str], str] = {}
    for tensor, name in names.items():
        first = seen.setdefault((name.part, paths.get(name.module, name.module)), tensor)
        if first != tensor and name.part in {Part.A, Part.B}:
            message = f"It stands for the same matrix as {clip(first, 200)}."
            yield Problem(ProblemCode.WEIGHTS_INVALID, message, tensor, SAVE_AGAIN)


def _unknown_layout(config: AdapterConfig | None) -> Iterator[Problem]:
    layout = config.fields.get("lora_B_layout") if config else None
    if layout not in (None, *LAYOUTS):
        message = f"Its experts' lora_B are packed in a way that is not known here: {clip(layout)}."
        yield Problem(ProblemCode.UNSUPPORTED_FEATURE, message, "lora_B_layout", MERGE)


def _dtype(header: Header, findings: Findings) -> str:
    """The type most bytes are in, with a problem for every tensor of a type that can't be served."""
    sizes: dict[str, int] = {}
    for tensor, entry in header.tensors.items():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
        if entry.dtype not in FLOATS:
            findings.problems.append(
                Problem(
                    ProblemCode.WEIGHTS_DTYPE,
                    f"It is stored as {entry.dtype}; a LoRA is served from BF16, F16 or F32.",
                    tensor,
                    "Save the adapter in 16 or 32 bit; only its base may be quantised.",
                )
            )
    wide = sizes.get("F32", 0) + sizes.get("F64", 0)
    if wide:
        findings.warnings.append(
            Problem(
                WarningCode.WEIGHTS_FLOAT32,
                f"Its weights are stored in 32 bit or more ({wide:,} bytes); they are served in the engine's type.",
                "",
                "Nothing has to be done; in 16 bit the file is half as large and answers the same.",
            )
        )
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def _unknown(module: str, tensor: str) -> Problem:
    leaf = module.rsplit(".", 1)[-1]
    if leaf in NOT_PROJECTIONS:
        message = f"It holds a LoRA of {leaf}, which is shared by all who are served."
        return Problem(ProblemCode.UNSUPPORTED_FEATURE, message, tensor, MERGE)
    if any(part in f"{module}." for part in _VISION):
        message = "It trained the vision part of a model; the base that is served has no such module."
        remedy = f"Train with finetune_vision_layers=False. Or: {MERGE}"
        return Problem(ProblemCode.UNKNOWN_MODULE, message, tensor, remedy)
    return Problem(ProblemCode.UNKNOWN_MODULE, "The base model has no such module.", tensor, WRONG_BASE)


def _experts(placed: Placed, base: Base) -> int:
    if placed.module in base.modules:
        return 0
    return base.experts[placed.module.rpartition(".")[0]].count


def _target_shape(placed: Placed, base: Base) -> tuple[int, int]:
    if placed.module in base.modules:
        return base.modules[placed.module]
    path, _, matrix = placed.module.rpartition(".")
    return base.experts[path].gate_up if matrix == "gate_up_proj" else base.experts[path].down


def _pair_problems(placed: Placed, header: Header, config: AdapterConfig | None, base: Base) -> Iterator[Problem]:
    for part, other in ((Part.A, Part.B), (Part.B, Part.A)):
        if part not in placed.tensors:
            message = f"Its {part.value} is missing."
            yield Problem(ProblemCode.PAIR_MISSING, message, placed.tensors[other], SAVE_AGAIN)
    if set(placed.tensors) != {Part.A, Part.B}:
        return
    a, b = (header.tensors[placed.tensors[part]] for part in (Part.A, Part.B))
    if len(a.shape) != MATRIX or len(b.shape) != MATRIX:
        message = f"lora_A and lora_B are not matrices but {list(a.shape)} and {list(b.shape)}."
        yield Problem(ProblemCode.SHAPE_MISMATCH, message, placed.tensors[Part.A], WRONG_BASE)
        return
    outputs, inputs = _target_shape(placed, base)
    if (b.shape[0], a.shape[1]) != (outputs, inputs):
        message = (
            f"It fits a module of {a.shape[1]} inputs and {b.shape[0]} outputs; the base's has {inputs} and {outputs}."
        )
        yield Problem(ProblemCode.SHAPE_MISMATCH, message, placed.tensors[Part.A], WRONG_BASE)
    yield from _rank_problems(placed, a.shape[0], b.shape[1], config, _experts(placed, base))


def _pair(placed: Placed, header: Header, config: AdapterConfig, experts: int, *, grouped: bool) -> Iterator[Pair]:
    """The pair, if its numbers can be read and it is known how they are scaled."""
    a, b = placed.tensors[Part.A], placed.tensors[Part.B]
    scale = config.scale(parameter(placed.trained))
    if scale is not None and {header.tensors[a].dtype, header.tensors[b].dtype} <= FLOATS:
        yield Pair(placed.module, a, b, scale, experts, grouped=grouped and experts > 0)


def _ranks(placed: tuple[Placed, ...], header: Header, base: Base) -> dict[str, int]:
    ranks = {}
    for module in placed:
        shape = header.tensors[module.tensors[Part.A]].shape if Part.A in module.tensors else ()
        if len(shape) == MATRIX:
            ranks[module.module] = shape[0] // max(_experts(module, base), 1)
    return ranks


def _rank_problems(
    placed: Placed, rank: int, other: int, config: AdapterConfig | None, experts: int
) -> Iterator[Problem]:
    where = placed.tensors[Part.A]
    if rank != other:
        message = f"lora_A has rank {rank} and lora_B rank {other}."
        yield Problem(ProblemCode.RANK_MISMATCH, message, where, SAVE_AGAIN)
    configured = config.rank(parameter(placed.trained)) if config else None
    if configured is not None and rank != configured * max(experts, 1):
        per_expert = f" for each of {experts} experts" if experts else ""
        message = f"Its rank is {rank}; adapter_config.json says {configured}{per_expert}."
        remedy = "Take both files from the same save: the rank decides how strongly the adapter is scaled."
        yield Problem(ProblemCode.RANK_MISMATCH, message, where, remedy)


def _is_grouped(config: AdapterConfig) -> bool:
    """Whether fused experts' lora_B is packed expert by expert, as Unsloth wrote it before it noted the layout."""
    layout = config.fields.get("lora_B_layout")
    mapping = config.fields.get("auto_mapping")
    fixed = isinstance(mapping, dict) and mapping.get("unsloth_fixed") is True
    return layout == "grouped_by_expert" or (layout is None and fixed and bool(config.fields.get("target_parameters")))


def _repairs(placed: tuple[Placed, ...], pairs: list[Pair]) -> Repairs:
    names = {tensor: served_name(module, part) for module in placed for part, tensor in module.tensors.items()}
    return Repairs(names, {pair.b: pair.experts for pair in pairs if pair.grouped})


def _repair_warnings(repairs: Repairs) -> Iterator[Problem]:
    renamed = [(old, new) for old, new in repairs.names.items() if old != new]
    if renamed:
        old, new = renamed[0]
        yield Problem(
            WarningCode.NAMES_REPAIRED,
            f"{len(renamed)} tensors are served under the names the base has for them, such as {clip(new, 200)}.",
            old,
            "Nothing has to be done; your file stays as it is.",
        )
    if repairs.grouped:
        yield Problem(
            WarningCode.LAYOUT_REPAIRED,
            "Its experts' lora_B are packed expert by expert, as Unsloth wrote them until 2026.9.5; they are served "
            "packed rank by rank, as the engine reads them.",
            next(iter(repairs.grouped)),
            "Nothing has to be done, unless it was trained with UNSLOTH_MOE_LORA_MERGED=1: then save it again with a "
            "newer Unsloth.",
        )
