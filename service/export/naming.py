"""Names of one tensor: in the model's code, which adapters use, and in the base's files, which may be older.

transformers renames while it loads; these are the renamings of the architectures that were released under other
names than they have today. A wrong one can't go unnoticed: the verification compares every tensor by the code's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.language_model.", ("language_model.model.", "model.", "language_model.")),
    ("model.visual.", ("visual.",)),
    ("model.vision_tower.", ("vision_tower.", "vision_tower.vision_model.")),
    ("model.multi_modal_projector.", ("multi_modal_projector.",)),
    ("model.", ("model.language_model.", "language_model.model.", "")),
    ("transformer.", ("",)),
    ("lm_head.", ("language_model.lm_head.",)),
)
"""Beginning of a name in the code → beginnings it may have in files, most usual first."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


def on_disk(name: str, present: Collection[str]) -> str | None:
    """The name among `present` of the tensor that the code calls `name`, or None when there is none."""
    if name in present:
        return name
    for prefix, older in PREFIXES:
        if not name.startswith(prefix):
            continue
        for beginning in older:
            candidate = beginning + name.removeprefix(prefix)
            if candidate in present:
                return candidate
    return None


def embedding(present: Collection[str]) -> str | None:
    """The token embedding among the tensors of a model; None unless there is exactly one that could be it."""
    return _only(
        name for name in present if name.endswith(EMBEDDINGS) and "vision" not in name and "visual" not in name
    )


def head(present: Collection[str]) -> str | None:
    """The output layer over the vocabulary; None when the model has none of its own, and uses the embedding."""
    return _only(name for name in present if name in HEADS or name.endswith(tuple(f".{head}" for head in HEADS)))


def _only(names: object) -> str | None:
    found = list(names)  # type: ignore[call-overload]
    return found[0] if len(found) == 1 else None
