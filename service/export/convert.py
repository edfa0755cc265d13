"""The walk of a conversion: what is there, what it needs, writing it, proving it, putting it in place."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from service.adapter.content import digest_of
from service.adapter.files import TOKENIZER_LIMIT, read_bytes
from service.adapter.spec import WarningCode
from service.adapter.tokenizer import TEMPLATE
from service.errors import Rejected
from service.export import complete
from service.export.from_adapter import from_adapter
from service.export.from_model import from_model
from service.export.merge import Merger, total_bytes
from service.export.proof import Proof
from service.export.refusal import Refusal, Refused
from service.export.report import FILE, Conversion, Verification
from service.export.room import check_place, make_room, put_in_place
from service.export.shards import write_shards
from service.export.source import Kind, Source, classify

if TYPE_CHECKING:
    from pathlib import Path

    from service.export.ingredients import Ingredients
    from service.export.request import Progress, Request
    from service.export.shards import Planned

STORED = {"bfloat16": "BF16", "float16": "F16"}
PARTS_OF_IT = ("loradock", "numpy", "safetensors", "torch", "transformers", "peft")
KEPT = 0.5
"""Part of the adapter's effect on the logits below which the loss deserves a word."""


def convert(request: Request, progress: Progress) -> Conversion:
    """Convert `request.source` to a complete directory at `request.out`, which is there whole or not at all.

    Raises Refused with every reason found, or Undecided when it can't be told here.
    """
    check_place(request.source, request.out)
    try:
        source = classify(request.source)
        progress(f"Found {source.found}")
        gather = from_adapter if source.kind is Kind.ADAPTER else from_model
        with make_room(request.out) as made, gather(source, request) as ingredients:
            conversion = _make(made, source, ingredients, request, progress)
            put_in_place(made, request.out)
    except Rejected as error:
        raise Refused(error.problems) from None
    return conversion


def _make(made: Path, source: Source, given: Ingredients, request: Request, progress: Progress) -> Conversion:
    merger = Merger(given.model.tensors, given.adapter, given.plan, STORED[request.dtype])
    tied = given.tied if given.tied is not None else merger.shares_head()
    tensors = merger.tensors(shared_head=tied)
    weights = _write_weights(made, merger, tensors, progress)
    _write_companions(made, given, request, tied=tied)
    verification = _prove(made, given, source, request, progress, tied=tied) if request.verify else None
    conversion = Conversion(
        found=source.found,
        source=request.source.resolve().name,
        source_digest=_digest(source),
        base=given.base.name if given.base else "",
        base_fingerprint=given.base.fingerprint if given.base else "",
        dtype=request.dtype,
        tensors=len(tensors),
        bytes=total_bytes(tensors),
        weights=weights,
        supplied=given.supplied,
        notes=(*source.notes, *given.notes, *_weakness(verification)),
        verification=verification,
        versions=_versions(verification),
    )
    (made / FILE).write_text(conversion.as_json(), encoding="utf-8")
    (made / "README.md").write_text(conversion.card(), encoding="utf-8")
    return conversion


def _write_weights(made: Path, merger: Merger, tensors: list[Planned], progress: Progress) -> tuple[str, ...]:
    done, total = 0, total_bytes(tensors)

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress("Writing the weights", done, total)

    merger.progress = count
    return write_shards(made, tensors, merger.blocks)


def _write_companions(made: Path, given: Ingredients, request: Request, *, tied: bool) -> None:
    """config.json, generation_config.json, tokenizer and template."""
    facts = complete.Facts(given.plan.rows, given.hidden, given.layers, request.dtype, tied)
    config = complete.settled(given.config, facts)
    ends = complete.end_ids((given.generation or {}, config, complete.text_of(config)), given.end_token, facts.rows)
    config = complete.with_end_tokens(config, ends, facts.rows)
    _write_json(made / "config.json", config)
    _write_json(made / "generation_config.json", complete.generation(given.generation, config, ends))
    for name, path in given.tokenizer.files.items():
        data = read_bytes(path.parent, path.name, TOKENIZER_LIMIT, follow=True)
        (made / name).write_bytes(data or b"")
    if given.tokenizer.template is not None:
        (made / TEMPLATE).write_text(given.tokenizer.template, encoding="utf-8")


def _prove(
    made: Path, given: Ingredients, source: Source, request: Request, progress: Progress, *, tied: bool
) -> Verification:
    proof = Proof(made, request.dtype, request.verify_engine, progress)
    if source.kind is Kind.ADAPTER:
        return proof.of_merge(source, given.model, given.plan, tied=tied)
    return proof.of_model(given.model, given.base_tensors)


def _digest(source: Source) -> str:
    """What the registry would call an adapter's content; of anything else all weights, one after the other."""
    if source.kind is Kind.ADAPTER and not source.pickled:
        try:
            return digest_of(source.directory, max_bytes=1 << 62)
        except Rejected:
            pass  # links, which the registry doesn't follow and a user's own directory may hold
    digest = hashlib.sha256()
    for name in source.weights:
        with (source.directory / name).open("rb") as file:
            digest.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _weakness(verification: Verification | None) -> tuple[Refusal, ...]:
    kept = verification.comparison.kept if verification else None
    if kept is None or kept >= KEPT:
        return ()
    said = (
        f"Rounding to 16 bits took {1 - kept:.0%} of what the adapter does: it is very weak beside the base's weights."
    )
    return (Refusal(WarningCode.WEAK_EFFECT, said, "", "Serve it as an adapter, which isn't rounded into the base."),)


def _versions(verification: Verification | None) -> dict[str, str]:
    parts = PARTS_OF_IT if verification else PARTS_OF_IT[:2]
    found: dict[str, str] = {}
    for name in parts:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
