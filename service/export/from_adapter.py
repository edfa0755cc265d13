"""The ingredients of an adapter's conversion: the adapter, the base it was trained on, and the plan of the merge."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from service.adapter.base import Base
from service.adapter.config import CONFIG, AdapterConfig, clip, parse_config
from service.adapter.files import CONFIG_LIMIT, read_bytes
from service.adapter.names import QUANTISED, Kinship, kinship
from service.adapter.spec import ProblemCode, WarningCode
from service.adapter.tokenizer import read_tokenizer
from service.errors import ConfigurationError
from service.export import complete, naming
from service.export.features import INITIAL_MARKER, refusals
from service.export.ingredients import Ingredients, read_object, require_unquantised, with_positions
from service.export.plan import make_plan
from service.export.proof import Model
from service.export.refusal import ExportCode, Refusal, Refused, Undecided, refuse
from service.export.tensors import model_files, open_tensors
from service.export.vocabulary import Place, choose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.export.request import Request
    from service.export.source import Source


@contextmanager
def from_adapter(source: Source, request: Request) -> Iterator[Ingredients]:
    """Gather what an adapter's conversion needs. Raises Refused with everything that speaks against it."""
    adapter_config = _read_config(source.directory)
    base, kin = _find_base(adapter_config, request)
    config = read_object(base.path, "config.json") or {}
    files = model_files(base.path)
    with open_tensors(source.directory, source.weights) as adapter, open_tensors(base.path, files) as tensors:
        require_unquantised(tensors.entries, "The base")
        embedding = naming.embedding(tensors.entries)
        if embedding is None:
            raise Undecided("The base's token embedding can't be told from its other tensors.")
        plan = make_plan(adapter_config, adapter.entries, tensors.entries, base.model_type)
        own = Place(source.directory, read_tokenizer(source.directory, like=base.tokenizer, follow=True), plan.rows)
        chosen = choose(own, Place(base.path, base.tokenizer, tensors.entries[embedding].shape[0]))
        config, notes = with_positions(
            config, own.tokenizer.max_length, base.tokenizer.max_length, request, certain=base.tokenizer.present
        )
        yield Ingredients(
            model=Model(base.path, files, tensors, config),
            adapter=adapter,
            plan=plan,
            tied=_tied(plan.head, complete.tie_of(config)),
            config=config,
            generation=read_object(base.path, "generation_config.json"),
            tokenizer=chosen,
            hidden=tensors.entries[embedding].shape[1],
            layers=complete.count_layers(tensors.entries),
            base=base,
            base_tensors=tensors,
            notes=(*kin, *notes, *chosen.notes),
            supplied=("config.json", *chosen.supplied),
        )


def _read_config(directory: Path) -> AdapterConfig:
    config, problems = parse_config(read_bytes(directory, CONFIG, CONFIG_LIMIT, follow=True) or b"")
    if config is None or problems:
        raise Refused(problems)
    wrong = refusals(config.fields, marked=(directory / INITIAL_MARKER).exists())
    if wrong:
        raise Refused(wrong)
    return config


def _find_base(config: AdapterConfig, request: Request) -> tuple[Base, tuple[Refusal, ...]]:
    """The base and what there is to say about its name. Raises Refused (`base_needed`, `base_mismatch`), Undecided."""
    if request.model is None:
        return _named_base(config.base), ()
    try:
        base = Base.open(request.model)
    except ConfigurationError as error:
        raise Undecided(error.message) from None
    return base, _kinship_notes(config.base, base.name, allowed=request.allow_base_mismatch)


def _named_base(name: str) -> Base:
    """The base that the adapter names, if it is on this machine; a 4-bit copy's name stands for the original."""
    for candidate in dict.fromkeys(filter(None, (name, QUANTISED.sub("", name)))):
        with suppress(ConfigurationError):
            return Base.open(candidate)
    return refuse(
        ExportCode.BASE_NEEDED,
        f"It was trained on {name!r}, which is not on this machine." if name else "It doesn't name its base.",
        "base_model_name_or_path",
        "Name the base's directory with --model; nothing is downloaded.",
    )


def _kinship_notes(theirs: str, ours: str, *, allowed: bool) -> tuple[Refusal, ...]:
    kin = kinship(theirs, ours)
    if kin is Kinship.OTHER and not allowed:
        refuse(
            ProblemCode.BASE_MISMATCH,
            f"It was trained on {theirs!r} and the base is {ours!r}.",
            "base_model_name_or_path",
            "Name the base it was trained on, or say --allow-base-mismatch if they are the same weights.",
        )
    drift = "It was trained on a quantised copy of the base: answers may drift a little from those in training."
    words = {
        Kinship.QUANTISED: (WarningCode.BASE_QUANTISED, drift),
        Kinship.UNKNOWN: (WarningCode.BASE_UNVERIFIED, f"The name of its base, {clip(theirs)}, says nothing."),
        Kinship.OTHER: (WarningCode.BASE_UNVERIFIED, f"It names another base, {clip(theirs)}, as was allowed."),
    }
    return (Refusal(*words[kin], "base_model_name_or_path"),) if kin in words else ()


def _tied(head: str, configured: bool | None) -> bool | None:
    """Without an output layer it is the embedding; beside one that is said to be tied only the numbers can tell."""
    if not head:
        return True
    return False if configured is False else None
