"""What lies in a directory: whether it is an adapter's, and if not, what it is and which directory was meant."""

from __future__ import annotations

import os
import re
import stat
from itertools import islice
from typing import TYPE_CHECKING

from service.adapter.config import CONFIG, clip
from service.adapter.files import parse_object, read_bytes
from service.adapter.spec import Problem, ProblemCode, WarningCode
from service.adapter.tokenizer import TEMPLATE, TOKENIZER_FILES
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
CONTENT_FILES = (WEIGHTS, CONFIG, TEMPLATE, *TOKENIZER_FILES)
"""Everything of an adapter's directory that is ever read."""
PICKLES = frozenset({"adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"})
HARMLESS = frozenset({"README.md", ".gitattributes", ".gitignore", "LICENSE"})
ENTRY_LIMIT = 10_000
STATE_LIMIT = 16 << 20
"""Bytes of a trainer_state.json; long runs log megabytes."""
SHOWN = 5
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_MODEL = re.compile(r"(?:model|pytorch_model)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")


def layout_problems(directory: Path) -> list[Problem]:
    """Why the directory can't be an adapter's: what is missing, and where what was meant probably is.

    Raises Rejected when it is no readable directory.
    """
    names = _names(directory)
    problems = [] if CONFIG in names else [_config_missing(directory, names)]
    if WEIGHTS not in names:
        problems.append(_weights_missing(names))
    return problems


def layout_warnings(directory: Path) -> list[Problem]:
    """What lies beside an adapter and is left out, and whether its weights are private to one user."""
    ignored = sorted(_names(directory) - set(CONTENT_FILES) - HARMLESS)
    return [*_ignored(ignored), *_permissions(directory)]


def _names(directory: Path) -> set[str]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in islice(entries, ENTRY_LIMIT)}
    except OSError as error:
        problem = Problem(
            ProblemCode.PATH_FORBIDDEN,
            f"The directory can't be read: {error.strerror}.",
            "",
            "Check that it exists, is a directory and may be read by the service's user.",
        )
        raise Rejected([problem]) from None


def _config_missing(directory: Path, names: set[str]) -> Problem:
    message, remedy = "There is no adapter_config.json.", "Give the directory that model.save_pretrained(DIR) wrote."
    checkpoints = sorted((name for name in names if _CHECKPOINT.fullmatch(name)), key=_step)
    below = sorted(name for name in islice(sorted(names), SHOWN * 20) if (directory / name / CONFIG).is_file())
    if checkpoints:
        message = f"This is a trainer's output directory with {len(checkpoints)} checkpoints, not an adapter."
        remedy = _which_checkpoint(directory, checkpoints)
    elif any(_MODEL.fullmatch(name) for name in names):
        message = "This is a complete model, not a LoRA adapter: there is no adapter_config.json."
        remedy = "Serve it as its own base with `loradock serve --model DIR`, or give the adapter's own directory."
    elif below:
        message = "There is no adapter_config.json here, but there is one further down."
        remedy = f"Give the adapter's own directory: {', '.join(clip(name) for name in below[:SHOWN])}."
    elif any(name.endswith(".gguf") for name in names):
        remedy = "A GGUF file can't be served here; give the directory that model.save_pretrained(DIR) wrote."
    return Problem(ProblemCode.CONFIG_MISSING, message, CONFIG, remedy)


def _weights_missing(names: set[str]) -> Problem:
    pickle = next(iter(sorted(names & PICKLES)), None)
    if pickle:
        return Problem(
            ProblemCode.WEIGHTS_PICKLE,
            f"Its weights are a pickle ({pickle}), which can run code when it is opened; it was not opened.",
            pickle,
            "Save them as safetensors: model.save_pretrained(DIR, safe_serialization=True).",
        )
    return Problem(
        ProblemCode.WEIGHTS_MISSING,
        f"There is no {WEIGHTS}.",
        WEIGHTS,
        "Copy the whole directory that model.save_pretrained(DIR) wrote.",
    )


def _step(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def _which_checkpoint(directory: Path, checkpoints: list[str]) -> str:
    newest = checkpoints[-1]
    best = _best_checkpoint(directory / newest)
    if best in checkpoints and best != newest:
        return f"Give one checkpoint's directory: {best} is the best by its own evaluation, {newest} the newest."
    return f"Give one checkpoint's directory: {newest} is the newest."


def _best_checkpoint(checkpoint: Path) -> str | None:
    try:
        raw = read_bytes(checkpoint, "trainer_state.json", STATE_LIMIT)
        best = parse_object(raw).get("best_model_checkpoint") if raw else None
    except (Rejected, ValueError):
        return None
    return re.split(r"[/\\]", best.rstrip("/\\"))[-1] if isinstance(best, str) else None


def _ignored(names: list[str]) -> Iterator[Problem]:
    if not names:
        return
    shown = ", ".join(clip(name) for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    yield Problem(
        WarningCode.FILES_IGNORED,
        f"Files that are not part of an adapter are left out: {shown}{more}.",
        names[0] if names[0].isprintable() else "",
        "Nothing has to be done; pickles such as optimizer states are never opened.",
    )


def _permissions(directory: Path) -> Iterator[Problem]:
    try:
        mode = os.lstat(directory / WEIGHTS).st_mode
    except OSError:
        return
    if stat.S_ISREG(mode) and not mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Problem(
            WarningCode.PERMISSIONS,
            f"{WEIGHTS} may be read by its owner only (mode {stat.S_IMODE(mode):04o}).",
            WEIGHTS,
            f"Nothing has to be done here: the service's copy is readable. Elsewhere: chmod 644 {WEIGHTS}.",
        )
