"""The ingredients of a merged model's conversion: what it has, and from the base what it lacks where that is proven."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from service.adapter.base import Base
from service.adapter.spec import ProblemCode, WarningCode
from service.adapter.tokenizer import read_tokenizer
from service.errors import ConfigurationError
from service.export import complete, naming
from service.export.ingredients import Ingredients, read_object, require_unquantised, with_positions
from service.export.merge import main_dtype
from service.export.plan import Plan
from service.export.proof import Model
from service.export.refusal import ExportCode, Refusal, Undecided, refuse
from service.export.tensors import Tensors, model_files, open_tensors
from service.export.vocabulary import Place, choose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.export.request import Request
    from service.export.source import Source


@contextmanager
def from_model(source: Source, request: Request) -> Iterator[Ingredients]:
    """Gather what a whole model's conversion needs. Raises Refused with what is missing and who could supply it."""
    base = _open_base(request)
    with ExitStack() as stack:
        tensors = stack.enter_context(open_tensors(source.directory, source.weights))
        require_unquantised(tensors.entries, "The model")
        theirs = stack.enter_context(open_tensors(base.path, model_files(base.path))) if base else None
        embedding, head = naming.embedding(tensors.entries), naming.head(tensors.entries) or ""
        if embedding is None:
            raise Undecided("The model's token embedding can't be told from its other tensors.")
        rows, hidden = tensors.entries[embedding].shape
        config, supplied = _config(source.directory, tensors, base, theirs, (embedding, head))
        _require_head(head, complete.tie_of(config))
        own = Place(source.directory, read_tokenizer(source.directory, follow=True), rows)
        chosen = choose(own, _place(base, theirs))
        config, notes = with_positions(
            config, own.tokenizer.max_length, base.tokenizer.max_length if base else None, request,
            certain=base is not None and base.tokenizer.present,
        )  # fmt: skip
        generation = read_object(source.directory, "generation_config.json")
        if generation is None and base is not None:
            generation = read_object(base.path, "generation_config.json")
            supplied += ("generation_config.json",) if generation is not None else ()
        yield Ingredients(
            model=Model(source.directory, source.weights, tensors, config),
            adapter=None,
            plan=Plan({}, embedding, head, rows, tied=not head),
            tied=_tied(head, complete.tie_of(config)),
            config=config,
            generation=generation,
            tokenizer=chosen,
            hidden=hidden,
            layers=complete.count_layers(tensors.entries),
            base=base,
            base_tensors=theirs,
            notes=(*_left_over(config), *_precision(tensors), *notes, *chosen.notes),
            supplied=(*supplied, *chosen.supplied),
        )


def _open_base(request: Request) -> Base | None:
    try:
        return Base.open(request.model) if request.model is not None else None
    except ConfigurationError as error:
        raise Undecided(error.message) from None


def _place(base: Base | None, tensors: Tensors | None) -> Place | None:
    if base is None or tensors is None:
        return None
    embedding = naming.embedding(tensors.entries)
    return Place(base.path, base.tokenizer, tensors.entries[embedding].shape[0] if embedding else 0)


def _config(
    directory: Path, tensors: Tensors, base: Base | None, theirs: Tensors | None, vocabulary: tuple[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """config.json as it is, or completed by the base's when the base's tensors have the same names and shapes."""
    own = read_object(directory, "config.json") or {}
    missing = complete.gaps(own)
    if not missing:
        return own, ()
    lack = f"config.json lacks {', '.join(missing)}" if own else "There is no config.json"
    if base is None or theirs is None:
        refuse(
            ExportCode.BASE_NEEDED,
            f"{lack}.",
            "config.json",
            "Name the base it was trained on with --model, or put its complete config.json beside the weights.",
        )
    different = complete.base_differences(tensors.entries, theirs.entries, vocabulary)
    if different:
        refuse(
            ProblemCode.BASE_MISMATCH,
            f"{lack}, and the base's doesn't fit: {len(different)} tensors differ in "
            f"name or shape, {different[0]} among them.",
            "config.json",
            "Name the base it was trained on, or put its complete config.json beside the weights.",
        )
    full = read_object(base.path, "config.json") or {}
    if own.get("model_type") not in {None, full.get("model_type")}:
        refuse(
            ProblemCode.BASE_MISMATCH,
            f"config.json says {own['model_type']!r} and the base is {full.get('model_type')!r}.",
            "config.json",
            "Name the base it was trained on.",
        )
    # What the stub says holds, save where it says nothing; who is tied the tensors know better than either.
    return {**full, **{key: value for key, value in own.items() if value not in (None, [], {})}}, ("config.json",)


def _require_head(head: str, tied: bool | None) -> None:
    if not head and tied is False:
        refuse(
            ProblemCode.WEIGHTS_MISSING,
            "config.json says that the output layer is not the embedding, and there is no output layer.",
            "lm_head.weight",
            "Save the model again; or, if the base's are one, set tie_word_embeddings to true in config.json.",
        )


def _tied(head: str, configured: bool | None) -> bool | None:
    if not head:
        return True
    return False if configured is False else None


def _left_over(config: dict[str, Any]) -> Iterator[Refusal]:
    parts = (config, *(config[name] for name in complete.PARTS if isinstance(config.get(name), dict)))
    if any("quantization_config" in part for part in parts):
        yield Refusal(
            WarningCode.FILES_IGNORED,
            "config.json speaks of a quantisation that the weights don't have; it is left out.",
            "quantization_config",
        )


def _precision(tensors: Tensors) -> Iterator[Refusal]:
    if main_dtype(tensors) in {"F32", "F64"}:
        yield Refusal(WarningCode.WEIGHTS_FLOAT32, "The weights are 32 bits wide; they are rounded to 16, once.")
