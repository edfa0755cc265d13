"""Full tensors that training saved beside the LoRA (modules_to_save): needed, or just copies of the base's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.adapter.config import clip
from service.adapter.features import MERGE
from service.adapter.safetensors_header import NUMPY
from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.adapter.tensor_names import parse_name
from service.adapter.weights import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from service.adapter.base import Base
    from service.adapter.findings import Findings
    from service.adapter.safetensors_header import TensorFile

ROWS = 4096
"""Rows compared at once: a few megabytes of an embedding."""


def judge_kept(
    file: TensorFile, kept: Sequence[str], fields: Mapping[str, Any], base: Base, findings: Findings
) -> None:
    """Refuse what was trained; copies of the base's own tensors are left out with a warning."""
    listed = fields.get("modules_to_save")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    findings.problems += _absent(names, kept)
    trained = [tensor for tensor in kept if not _is_copy(file, tensor, base)]
    findings.problems += (problem for tensor in trained for problem in _trained(file, tensor, base))
    copies = len(kept) - len(trained)
    if copies:
        findings.warnings.append(
            Problem(
                WarningCode.MODULES_DROPPED,
                f"{copies} full tensors are the base's own, unchanged by training; they are left out.",
                next(tensor for tensor in kept if tensor not in trained),
                "Nothing has to be done; without modules_to_save the file is much smaller.",
            )
        )


def _absent(names: Sequence[str], kept: Sequence[str]) -> Iterator[Problem]:
    paths = [parse_name(tensor).module.rsplit(".", 1)[0] for tensor in kept]
    leaves = {path.rsplit(".", 1)[-1] for path in paths}
    for name in names:
        if name.rsplit(".", 1)[-1] not in leaves:
            yield Problem(
                ProblemCode.UNSUPPORTED_FEATURE,
                f"It trained {clip(name)} as a whole, and the file doesn't hold it.",
                "modules_to_save",
                f"model.save_lora leaves such modules out; use model.save_pretrained. {MERGE}",
            )


def _trained(file: TensorFile, tensor: str, base: Base) -> Iterator[Problem]:
    path = parse_name(tensor).module
    yield Problem(
        ProblemCode.UNSUPPORTED_FEATURE,
        f"It trained {clip(path.split('.')[-2])} as a whole (modules_to_save), which all who are served share.",
        tensor,
        MERGE,
    )
    shape = file.header.tensors[tensor].shape
    if path.endswith(("embed_tokens.weight", "lm_head.weight")) and shape and shape[0] != base.vocab_size:
        yield Problem(
            ProblemCode.VOCABULARY_MISMATCH,
            f"Its embedding has {shape[0]:,} rows; the base has {base.vocab_size:,}.",
            tensor,
            f"Tokens were added in training. {MERGE}",
        )


def _is_copy(file: TensorFile, tensor: str, base: Base) -> bool:
    """Whether the tensor, rounded to the base's type, is the base's own."""
    own = _own_tensor(parse_name(tensor).module, base)
    entry = file.header.tensors[tensor]
    if own is None or entry.dtype not in FLOATS or base.tensors[own].entry.dtype not in FLOATS:
        return False
    theirs = base.tensors[own].entry
    if entry.shape != theirs.shape or 0 in entry.shape:
        return False
    for first in range(0, entry.shape[0], ROWS):
        count = min(ROWS, entry.shape[0] - first)
        with np.errstate(over="ignore"):
            ours = file.read_rows(tensor, first, count).astype(NUMPY[theirs.dtype])
        if not np.array_equal(ours, base.read_rows(own, first, count)):
            return False
    return True


def _own_tensor(path: str, base: Base) -> str | None:
    if path in base.tensors:
        return path
    if path == "lm_head.weight" and base.tie_word_embeddings:
        return next((name for name in base.tensors if name.endswith("embed_tokens.weight")), None)
    return None
