"""What people have: an adapter, a trainer's output, a merged model; whole or not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from service.adapter.config import CONFIG
from service.adapter.files import read_bytes
from service.adapter.spec import ProblemCode, WarningCode
from service.export.refusal import ExportCode, Refusal, Undecided, refuse
from service.export.tensors import ADAPTER_PICKLE, ADAPTER_SAFETENSORS, model_files

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})")
STATE_LIMIT = 256 << 20
"""Bytes of a trainer_state.json, which logs every step."""
ENTRIES_LIMIT = 10_000
"""Files and directories looked at in one directory."""
TRAINED_ELSEWHERE = {
    "mtp_head.safetensors": "a trained multi-token-prediction head, which a standard model directory has no place for",
}


class Kind(StrEnum):
    """The two things that can be converted."""

    ADAPTER = "adapter"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Source:
    """A directory that can be converted, as far as its file names tell."""

    kind: Kind
    directory: Path
    """Where its files are: what was asked for, or a directory in it."""
    weights: tuple[str, ...]
    """Its weight files, in order and all of one format."""
    found: str
    """In words, for the report."""
    notes: tuple[Refusal, ...] = ()
    """What deserves a word and doesn't forbid the conversion."""

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickles."""
        return self.weights[0].endswith(".bin")


def classify(directory: Path) -> Source:
    """Say what `directory` holds, by the names of its files.

    An adapter is recognised first: a stub config.json may stand beside it. Raises Refused with what is missing or
    ambiguous, and Undecided when there is no such directory.
    """
    if not directory.is_dir():
        raise Undecided(f"There is no directory {directory.name!r}.")
    try:
        names = {path.name for _, path in zip(range(ENTRIES_LIMIT), directory.iterdir(), strict=False)}
    except PermissionError:
        raise Undecided(f"The directory {directory.name!r} may not be read.") from None
    return _adapter(directory, names) or _model(directory) or _below(directory, names) or _nothing(directory, names)


def _adapter(directory: Path, names: set[str]) -> Source | None:
    if CONFIG not in names:
        return None
    weights = next((name for name in (ADAPTER_SAFETENSORS, ADAPTER_PICKLE) if name in names), None)
    if weights is None and model_files(directory):
        return None
    if weights is None:
        refuse(
            ProblemCode.WEIGHTS_MISSING,
            "There is an adapter_config.json and no adapter_model.safetensors or adapter_model.bin.",
            ADAPTER_SAFETENSORS,
            "Save the adapter again with model.save_pretrained(DIR).",
        )
    notes = [
        Refusal(WarningCode.FILES_IGNORED, f"{name} holds {what}; it is left out.", name)
        for name, what in TRAINED_ELSEWHERE.items()
        if name in names
    ]
    form = "as a pickle" if weights == ADAPTER_PICKLE else "in safetensors"
    return Source(Kind.ADAPTER, directory, (weights,), f"a LoRA adapter, weights {form}", tuple(notes))


def _model(directory: Path) -> Source | None:
    weights = model_files(directory)
    if not weights:
        return None
    form = "pickled" if weights[0].endswith(".bin") else "safetensors"
    files = "1 file" if len(weights) == 1 else f"{len(weights)} files"
    return Source(Kind.MODEL, directory, weights, f"a whole model, {files} of {form} weights")


def _below(directory: Path, names: set[str]) -> Source | None:
    """A trainer's output directory, or the parent of the one adapter that PEFT saved under its own name."""
    checkpoints = sorted((name for name in names if CHECKPOINT.fullmatch(name)), key=_step)
    if checkpoints:
        return _checkpoint(directory, checkpoints)
    inner = sorted(name for name in names if not name.startswith(".") and (directory / name / CONFIG).is_file())
    if len(inner) > 1:
        refuse(
            ExportCode.AMBIGUOUS,
            f"It holds {len(inner)} adapters: {', '.join(inner[:10])}.",
            inner[0],
            f"Name the one that is meant: {directory.name}/{inner[0]}",
        )
    return classify(directory / inner[0]) if inner else None


def _checkpoint(directory: Path, checkpoints: list[str]) -> Source:
    best = _best(directory / checkpoints[-1])
    chosen = best if best in checkpoints else checkpoints[-1]
    why = "which the trainer called the best" if chosen == best else "the last"
    inner = classify(directory / chosen)
    found = f"a trainer's output with {len(checkpoints)} checkpoints; {chosen}, {why}: {inner.found}"
    return Source(inner.kind, inner.directory, inner.weights, found, inner.notes)


def _best(checkpoint: Path) -> str:
    """The checkpoint that the trainer's last state names as the best so far; "" when it names none."""
    data = read_bytes(checkpoint, "trainer_state.json", STATE_LIMIT, follow=True)
    try:
        best = json.loads(data or b"{}").get("best_model_checkpoint") or ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    return str(best).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _step(name: str) -> int:
    return int(name.rsplit("-", 1)[-1])


def _nothing(directory: Path, names: set[str]) -> Source:
    if any(name.endswith(".gguf") for name in names):
        refuse(
            ExportCode.QUANTISED,
            "It holds GGUF files only, which are quantised for llama.cpp.",
            next(name for name in sorted(names) if name.endswith(".gguf")),
            'Save the model with save_pretrained_merged(DIR, tokenizer, save_method="merged_16bit").',
        )
    if (directory / "adapter_model.safetensors").exists() or ADAPTER_PICKLE in names:
        refuse(
            ProblemCode.CONFIG_MISSING,
            "There are adapter weights and no adapter_config.json, so rank and alpha are not known.",
            CONFIG,
            "Save the adapter again with model.save_pretrained(DIR).",
        )
    refuse(
        ProblemCode.WEIGHTS_MISSING,
        "There is no adapter_config.json and there are no model weights.",
        "",
        "Name the directory that model.save_pretrained, save_pretrained_merged or the trainer wrote.",
    )
