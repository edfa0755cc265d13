"""What transformers and PEFT make of the same source: the measure a conversion is held to.

This is the one file of the room that runs models. The reference never sees our arithmetic: PEFT reads the source's own
files, merges by its own code, and both results answer the same prompts through the same code.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from service.adapter.config import CONFIG
from service.export.features import MERGED, WITHOUT_MEANING
from service.export.parts import plain_name
from service.export.refusal import ExportCode, Undecided, refuse
from service.export.shards import Planned, write_shards
from service.export.tensors import ADAPTER_SAFETENSORS, open_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NEW_TOKENS = 16
TEXTS = ("The capital of France is", "def add(a, b):", "Once upon a time")
FOR_PEFT = WITHOUT_MEANING - {"auto_mapping", "runtime_config", "unsloth_fused_expert_lora", "lora_B_layout"}
"""Fields that PEFT itself needs to find what was trained."""
QUESTION = "What is the answer to life, the universe and everything?"


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy continuations of the prompts, end tokens ignored, and the logits of every step."""

    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Any, ...]
    """Per prompt a float32 tensor [steps, vocabulary]."""


def prompts(directory: Path) -> list[list[int]]:
    """The prompts as token ids, by the tokenizer of `directory`; with a chat template one of them is a conversation.

    Raises Refused when AutoTokenizer can't read it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
    except Exception as error:  # noqa: BLE001 (whatever it is, users of the result would meet it)
        refuse(ExportCode.UNFAITHFUL, f"AutoTokenizer can't load it: {_first_line(error)}", "tokenizer.json")
    encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
    if tokenizer.chat_template:
        conversation = [{"role": "user", "content": QUESTION}]
        encoded.append(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False))
    return [ids for ids in encoded if ids]


def load(directory: Path, dtype: str) -> Any:
    """The model of a directory, ready to answer.

    Raises Refused when tensors are missing, left over or of the wrong shape, Undecided when transformers doesn't know
    the architecture.
    """
    import torch

    with _quiet():
        try:
            model, info = _auto_class(directory).from_pretrained(
                str(directory), dtype=getattr(torch, dtype), output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (ValueError, KeyError, ImportError) as error:
            raise Undecided(
                f"transformers can't build this model: {_first_line(error)}. --no-verify converts without the proof."
            ) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, info.get(kind) or ()))
        if names:
            refuse(
                ExportCode.UNFAITHFUL,
                f"AutoModelForCausalLM finds {len(names)} {kind.replace('_', ' ')}: {', '.join(names[:3])}",
                names[0],
                "config.json and the weights belong to different models.",
            )
    return model.eval()


def answer(model: Any, asked: Sequence[Sequence[int]]) -> Answers:
    """Greedy continuations of all prompts, in one batch: shapes, and with them rounding, are the same for everyone."""
    import torch
    from transformers import GenerationConfig

    ids, mask = _batch(asked)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    model.generation_config = greedy
    with torch.inference_mode(), _quiet():
        made = model.generate(
            ids, attention_mask=mask, generation_config=greedy, output_logits=True, return_dict_in_generate=True
        )
    logits = torch.stack(made.logits, dim=1).float()
    return Answers(tuple(map(tuple, made.sequences[:, ids.shape[1] :].tolist())), tuple(logits))


def prompt_logits(model: Any, asked: Sequence[Sequence[int]]) -> Any:
    """The logits at every token of every prompt, float32 [tokens, vocabulary]."""
    import torch

    ids, mask = _batch(asked)
    with torch.inference_mode():
        return model(ids, attention_mask=mask).logits[mask.bool()].float()


def _batch(asked: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Prompts as one tensor, shorter ones filled up on the left, and the mask that says where they are."""
    import torch

    width = max(map(len, asked))
    ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in asked])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked])
    return ids, mask


@dataclass(frozen=True, slots=True)
class Effect:
    """What an adapter does to the logits of the prompts, before anything is merged."""

    adapted: Any
    """`prompt_logits` of base + adapter."""
    plain: Any
    """`prompt_logits` of the base."""


def peft_merge(
    base: Path, adapter: Path, weights: str, *, rows: int, untied: bool, asked: Sequence[Sequence[int]]
) -> tuple[Any, Effect]:
    """Base and adapter loaded by PEFT and merged by it, all in float32, where nothing is rounded on the way.

    `weights` is the adapter's file, `rows` the vocabulary it was trained with. PEFT merges in place, so where embedding
    and output layer share their memory it changes both by what is meant for one, or one by what is meant for both:
    they are parted first, as base + adapter treats them, and `untied` says that they come apart for good.
    Raises Undecided when PEFT can't read all of the adapter.
    """
    from peft import PeftModel

    model = load(base, "float32")
    with _quiet():
        if model.get_input_embeddings().weight.shape[0] != rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        _part_head(model, untied=untied)
        with _understood(adapter, weights) as sound, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                wrapped = PeftModel.from_pretrained(model, str(sound)).eval()
            except Exception as error:
                raise Undecided(f"PEFT can't load the adapter: {_first_line(error)}") from error
    _require_all_loaded(str(warning.message) for warning in caught)
    adapted = prompt_logits(wrapped, asked)
    with warnings.catch_warnings():
        # Of trained biases that disabling leaves in, and of an output layer that is no longer the embedding.
        warnings.simplefilter("ignore")
        with wrapped.disable_adapter():
            plain = prompt_logits(wrapped, asked)
        return wrapped.merge_and_unload().eval(), Effect(adapted, plain)


def cast(model: Any, dtype: str) -> Any:
    """The model with its weights in another type; computed tables (the positions' frequencies) stay as they are."""
    import torch

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


@contextmanager
def _understood(adapter: Path, weights: str) -> Iterator[Path]:
    """The adapter under PEFT's own names, with only those fields that the merge understood: PEFT imports by some."""
    fields = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    with TemporaryDirectory() as name:
        room = Path(name)
        _give_weights(room, adapter, weights)
        kept = {key: value for key, value in fields.items() if key in MERGED | FOR_PEFT}
        (room / CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        yield room


def _give_weights(room: Path, adapter: Path, weights: str) -> None:
    """A link to the weights, or where a name isn't PEFT's a copy with names that are."""
    with open_tensors(adapter, (weights,)) as tensors:
        names = {plain_name(name): name for name in tensors.entries}
        if all(plain == name for plain, name in names.items()):
            (room / weights).symlink_to((adapter / weights).resolve())
            return
        entries = [(plain, tensors.entries[name]) for plain, name in names.items()]
        planned = [Planned(plain, entry.dtype, entry.shape) for plain, entry in entries]
        (written,) = write_shards(room, planned, lambda tensor: iter([tensors.read(names[tensor.name])]))
        (room / written).rename(room / ADAPTER_SAFETENSORS)


def _require_all_loaded(messages: Iterable[str]) -> None:
    for message in messages:
        if "missing adapter keys" in message:
            raise Undecided(f"PEFT loads only a part of the adapter: {message.splitlines()[0][:300]}")


def _part_head(model: Any, *, untied: bool) -> None:
    """Give the output layer memory of its own, and say so in the configuration if it is to be one of its own."""
    from torch.nn import Parameter

    head = model.get_output_embeddings()
    head.weight = Parameter(head.weight.detach().clone())
    if untied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _auto_class(directory: Path) -> Any:
    """The class by which users would load it: a causal language model, or one that reads images too."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(AutoConfig.from_pretrained(str(directory))) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if known else AutoModelForImageTextToText


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice, which would tear our own display."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
