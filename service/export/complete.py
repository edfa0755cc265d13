"""config.json and generation_config.json of the result; what a source lacks is the base's where that is proven.

Every function here is pure: dictionaries and the facts that the tensors' headers state, in; dictionaries, out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.adapter.config import clip
from service.adapter.spec import ProblemCode, WarningCode
from service.export.refusal import ExportCode, Refusal, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from service.adapter.safetensors_header import TensorEntry

TEXT = "text_config"
PARTS = (TEXT, "vision_config", "audio_config")
HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
DROPPED = ("_name_or_path", "auto_map", "quantization_config", "torch_dtype")
"""What must not follow the weights: whose they were, code of their own, how they were once stored."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tensors of the result say about its configuration."""

    rows: int
    """Of the embedding: the vocabulary's size."""
    hidden: int
    layers: int
    """Of the language model, counted by name."""
    dtype: str
    """bfloat16 or float16."""
    tied: bool
    """Whether there is no output layer beside the embedding."""


def count_layers(names: Iterable[str]) -> int:
    """Layers of the language model, by the highest number among the names of its tensors."""
    text = [name for name in names if "vision" not in name and "visual" not in name and "audio" not in name]
    return max((int(found[1]) + 1 for name in text if (found := _LAYER.search(name))), default=0)


def gaps(config: Mapping[str, Any]) -> list[str]:
    """The fields without which transformers builds another model, or none."""
    text = text_of(config)
    missing = [name for name in ("model_type", "architectures") if not config.get(name)]
    return missing + [names[0] for names in (HIDDEN, LAYERS, HEADS) if _value(text, names) is None]


def base_differences(
    entries: Mapping[str, TensorEntry], base: Mapping[str, TensorEntry], vocabulary: Sequence[str]
) -> list[str]:
    """Names of tensors that keep the base's configuration from being this model's: missing, added or shaped otherwise.

    Those in `vocabulary` (embedding and output layer) may have other rows, and the output layer may be absent.
    """
    different = {name for name in entries.keys() ^ base.keys() if name not in vocabulary}
    for name in entries.keys() & base.keys():
        fixed = 1 if name in vocabulary else 0
        if entries[name].shape[fixed:] != base[name].shape[fixed:]:
            different.add(name)
    return sorted(different)


def settled(config: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The configuration with all that the tensors know better, and without what no longer holds.

    Raises Refused when it describes a model of another size.
    """
    text = text_of(config)
    for names, fact in ((HIDDEN, facts.hidden), (LAYERS, facts.layers)):
        said = _value(text, names)
        if said is not None and fact and said != fact and not (names is LAYERS and said < fact):
            refuse(
                ProblemCode.CONFIG_INVALID,
                f"config.json says {names[0]} = {clip(said)} and the weights have {fact}.",
                "config.json",
                "The configuration belongs to another model, or weights are missing: copy both from one place.",
            )
    result = unlabelled(config)
    for part in (result, *(result[name] for name in PARTS if name in result)):
        if part is result or "dtype" in part:
            part["dtype"] = facts.dtype
    _set_intext_of(result, "vocab_size", facts.rows)
    _set_intext_of(result, "tie_word_embeddings", facts.tied)
    result["tie_word_embeddings"] = facts.tied
    return result


def unlabelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, and each part of it, without what mustn't follow the weights; new dictionaries throughout."""
    result = {key: value for key, value in config.items() if key not in DROPPED}
    for name in PARTS:
        if isinstance(result.get(name), dict):
            result[name] = {key: value for key, value in result[name].items() if key not in DROPPED}
        else:
            result.pop(name, None)
    return result


def tie_of(config: Mapping[str, Any]) -> bool | None:
    """Whether the configuration says that the embedding is the output layer; None when it doesn't say."""
    for part in (config, text_of(config)):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest context the configuration knows positions for."""
    value = _value(text_of(config), CONTEXT)
    return value if type(value) is int else None


def end_ids(configs: Iterable[Mapping[str, Any]], own: int | None, rows: int) -> list[int]:
    """Every token that ends a turn, the tokenizer's own first, as far as the vocabulary has it."""
    ids: list[Any] = [own]
    for config in configs:
        said = config.get("eos_token_id")
        ids += said if isinstance(said, list) else [said]
    return list(dict.fromkeys(number for number in ids if type(number) is int and 0 <= number < rows))


def with_end_tokens(config: Mapping[str, Any], ends: Sequence[int], rows: int) -> dict[str, Any]:
    """A config or generation config that ends on all of `ends` and names no token beyond the vocabulary."""
    result = {key: value for key, value in config.items() if not (key in IDS and type(value) is int and value >= rows)}
    if ends:
        result["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    return result


def generation(given: Mapping[str, Any] | None, config: Mapping[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """generation_config.json: as given, else the ids that config.json has; ending on all of `ends` in either case."""
    text = text_of(config)
    rows = text.get("vocab_size", config.get("vocab_size"))
    start = given if given is not None else {key: text[key] for key in IDS if text.get(key) is not None}
    kept = {key: value for key, value in start.items() if key != "_from_model_config"}
    return with_end_tokens(kept, ends, rows if type(rows) is int else 1 << 62)


def stretched(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The configuration with positions scaled linearly by `factor`, as a longer max_seq_length in training scales them.

    Raises Refused where each kind of layer has positions of its own, or they are scaled already.
    """
    result = {**config}
    text = result[TEXT] = {**result[TEXT]} if isinstance(result.get(TEXT), dict) else None
    if text is None:
        del result[TEXT]
        text = result
    key = "rope_parameters" if isinstance(text.get("rope_parameters"), dict) else "rope_scaling"
    rope = text.get(key) or {}
    length = context_length(config)
    if rope.get("rope_type", rope.get("type", "default")) != "default" or any(
        isinstance(value, dict) for value in rope.values()
    ):
        refuse(
            ExportCode.AMBIGUOUS,
            "The base scales its positions in a way of its own, so a linear factor can't be added to it.",
            key,
            "Write the scaling it was trained with into the base's config.json.",
        )
    text[key] = {**rope, "rope_type": "linear", "factor": factor}
    if length is not None:
        text["max_position_embeddings"] = round(length * factor)
    return result


def stretch_problem(trained: float | None, base_length: float | None, config: Mapping[str, Any]) -> Refusal | None:
    """Whether a tokenizer's length betrays a training beyond the base's context, which leaves no other trace.

    `trained` and `base_length` are the model_max_length of the source's and of the base's tokenizer (None: unknown).
    """
    limit = context_length(config)
    if trained is None or limit is None or trained <= limit or trained == base_length:
        return None
    return Refusal(
        WarningCode.ROPE_EXTENDED,
        f"It was trained for {trained:,.0f} tokens and the base has positions for {limit:,}: Unsloth stretches them "
        "in memory and saves no word of it.",
        "model_max_length",
        f"Say --rope-factor {trained / limit:g} for what Unsloth does, or --rope-factor 1 when nothing was stretched.",
    )


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration; of a text model that is all of it."""
    text = config.get(TEXT)
    return text if isinstance(text, dict) else config


def _set_intext_of(config: dict[str, Any], key: str, value: Any) -> None:
    text = config.get(TEXT)
    if not isinstance(text, dict):
        config[key] = value
    elif key in text or key not in config:
        text[key] = value
    if key in config:
        config[key] = value


def _value(config: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
