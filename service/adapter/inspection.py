"""The judgement of an adapter directory against a base: everything that is wrong with it, at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from service.adapter.config import CONFIG, AdapterConfig, clip, parse_config
from service.adapter.conversation import Conversation, compare
from service.adapter.features import MERGE, other_kind, unsupported_features
from service.adapter.files import CONFIG_LIMIT, open_regular, read_bytes
from service.adapter.findings import Findings, gather
from service.adapter.kept import judge_kept
from service.adapter.layout import WEIGHTS, layout_problems, layout_warnings
from service.adapter.names import Kinship, kinship
from service.adapter.safetensors_header import InvalidHeader, TensorFile
from service.adapter.spec import Problem, ProblemCode, Report, WarningCode
from service.adapter.tensors import Judged, judge
from service.adapter.tokenizer import read_tokenizer
from service.adapter.weights import FLOATS, Measurement, measure
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.adapter.base import Base

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What the engine can be started with as --max-lora-rank."""
LOOSE_LIMIT = 64 << 20
"""Bytes of a tensor that is read though it has no place in the base: what else is wrong with it."""
UNTOUCHED = Conversation((), (), (), own_template=False, own_tokenizer=False)


def inspect(
    directory: Path,
    base: Base,
    *,
    max_rank: int | None,
    dtype: str = "bfloat16",
    allow_base_mismatch: bool = False,
    numbers: bool = True,
) -> Report:
    """Judge an adapter's directory. Nothing in it is changed, no pickle is opened, no link is followed.

    `max_rank` is the engine's limit (None: not judged), `dtype` the serving type, `numbers` whether the weights
    themselves are read and not just their header. What is wrong is in the report; nothing is raised for it.
    """
    findings = Findings()
    try:
        findings.problems += layout_problems(directory)
        findings.warnings += layout_warnings(directory)
    except Rejected as rejected:
        return Report(problems=rejected.problems)
    if {problem.code for problem in findings.problems} >= {ProblemCode.CONFIG_MISSING, ProblemCode.WEIGHTS_MISSING}:
        return Report(problems=gather(findings.problems))
    config = _judge_config(directory, base, findings, allow_base_mismatch=allow_base_mismatch)
    judged, measured, size = _judge_weights(directory, config, base, findings, dtype if numbers else None)
    conversation = _judge_conversation(directory, base, findings)
    if max_rank is not None:
        findings.problems += _rank_problems(config, judged, max_rank)
    return Report(
        problems=gather(findings.problems),
        warnings=gather(findings.warnings),
        base=config.base if config else "",
        rank=max(judged.ranks.values(), default=0),
        modules=judged.ranks,
        dtype=judged.dtype,
        bytes=size,
        strength=measured.strength,
        strongest=measured.strongest,
        stop_token_ids=conversation.stop_token_ids,
        own_template=conversation.own_template,
        own_tokenizer=conversation.own_tokenizer,
        repairs=judged.repairs,
    )


def _judge_config(
    directory: Path, base: Base, findings: Findings, *, allow_base_mismatch: bool
) -> AdapterConfig | None:
    try:
        data = read_bytes(directory, CONFIG, CONFIG_LIMIT)
    except Rejected as rejected:
        findings.problems += rejected.problems
        return None
    if data is None:
        return None
    config, problems = parse_config(data)
    findings.problems += problems
    if config is None:
        return None
    kind = other_kind(config.fields)
    if kind is not None:
        # Every other field means something else there.
        findings.problems[:] = [problem for problem in findings.problems if problem not in problems]
        findings.problems.append(kind)
    else:
        findings.problems += unsupported_features(config.fields)
    _judge_base(config, base, findings, allow_base_mismatch=allow_base_mismatch)
    return config


def _judge_base(config: AdapterConfig, base: Base, findings: Findings, *, allow_base_mismatch: bool) -> None:
    where = "base_model_name_or_path"
    match kinship(config.base, base.name):
        case Kinship.QUANTISED:
            findings.warnings.append(
                Problem(
                    WarningCode.BASE_QUANTISED,
                    f"It was trained on {clip(config.base)}, the same weights in another precision than {base.name}.",
                    where,
                    "Nothing has to be done. Answers may differ slightly from those seen in training.",
                )
            )
        case Kinship.UNKNOWN:
            named = f"names its base by a local path ({clip(config.base)})" if config.base else "names no base"
            findings.warnings.append(
                Problem(
                    WarningCode.BASE_UNVERIFIED,
                    f"It {named}; only its tensors can tell whether it belongs to {base.name}.",
                    where,
                    "Make sure it was trained on the base that is served.",
                )
            )
        case Kinship.OTHER if allow_base_mismatch:
            findings.warnings.append(
                Problem(
                    WarningCode.BASE_UNVERIFIED,
                    f"It was trained on {clip(config.base)} and is served on {base.name}, as was asked for.",
                    where,
                    "Make sure both are the same weights.",
                )
            )
        case Kinship.OTHER:
            findings.problems.append(
                Problem(
                    ProblemCode.BASE_MISMATCH,
                    f"It was trained on {clip(config.base)}; the base that is served is {base.name}.",
                    where,
                    "Serve it on its own base. If both names stand for the same weights, register it with "
                    "allow_base_mismatch, or start the service with --base-model-name.",
                )
            )
        case Kinship.SAME:
            pass


def _judge_weights(
    directory: Path, config: AdapterConfig | None, base: Base, findings: Findings, dtype: str | None
) -> tuple[Judged, Measurement, int]:
    nothing = Judged(), Measurement((), None, ""), 0
    try:
        raw = open_regular(directory, WEIGHTS)
    except Rejected as rejected:
        findings.problems += rejected.problems
        return nothing
    if raw is None:
        return nothing
    size = os.fstat(raw.fileno()).st_size
    try:
        with TensorFile(raw) as file:
            judged = judge(file.header, config, base, findings)
            judge_kept(file, judged.kept, config.fields if config else {}, base, findings)
            if dtype is None:
                return judged, nothing[1], size
            measured = measure(file, judged.pairs, _loose(file, judged), base, dtype)
            findings.problems += measured.problems
            return judged, measured, size
    except InvalidHeader as error:
        findings.problems.append(_unsound(error))
        return *nothing[:2], size


def _loose(file: TensorFile, judged: Judged) -> Iterator[str]:
    """Tensors that belong to no sound pair; what is too large for any module of a base is not even read."""
    paired = {tensor for pair in judged.pairs for tensor in (pair.a, pair.b)} | set(judged.kept)
    return (
        tensor
        for tensor, entry in file.header.tensors.items()
        if tensor not in paired and entry.dtype in FLOATS and entry.end - entry.start <= LOOSE_LIMIT
    )


def _unsound(error: InvalidHeader) -> Problem:
    if error.incomplete:
        return Problem(
            ProblemCode.WEIGHTS_INCOMPLETE,
            f"The weights are cut off: {error}.",
            WEIGHTS,
            "Copy the file again, and put it in place by renaming once it is whole.",
        )
    return Problem(
        ProblemCode.WEIGHTS_INVALID,
        f"The weights can't be read: {error}.",
        WEIGHTS,
        "Save it again with model.save_pretrained(DIR).",
    )


def _judge_conversation(directory: Path, base: Base, findings: Findings) -> Conversation:
    try:
        conversation = compare(read_tokenizer(directory, like=base.tokenizer), base)
    except Rejected as rejected:
        findings.problems += rejected.problems
        return UNTOUCHED
    findings.problems += conversation.problems
    findings.warnings += conversation.warnings
    return conversation


def _rank_problems(config: AdapterConfig | None, judged: Judged, limit: int) -> Iterator[Problem]:
    """What the configuration asks for decides, as in the engine; tensors of another rank are a problem of their own."""
    ranks = dict(judged.ranks)
    if config:
        ranks = {"r": config.r or 0, "rank_pattern": max(config.rank_pattern.table.values(), default=0)}
    for where, rank in ranks.items():
        if rank > limit:
            enough = next((allowed for allowed in ENGINE_RANKS if allowed >= rank), None)
            setting = f"Start the service with --max-lora-rank {enough}" if enough else "Train with a smaller rank"
            yield Problem(
                ProblemCode.RANK_TOO_LARGE,
                f"Its rank is {rank}; the service was started for at most {limit}.",
                where,
                f"{setting}. Or: {MERGE}",
            )
