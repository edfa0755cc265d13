"""Which of PEFT's LoRA features a merge can express, read from adapter_config.json.

A field nobody here knows is refused when it is set: it may change what is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.adapter.config import clip
from service.adapter.features import TEXT_TASKS, other_kind
from service.adapter.spec import ProblemCode
from service.export.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MERGED = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "use_dora",
        "lora_bias",
        "bias",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "ensure_weight_tying",
    }
)
"""Fields that change what is computed, and that the merge computes."""
WITHOUT_MEANING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_B_layout",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "unsloth_fused_expert_lora",
        "init_lora_weights",
    }
)
"""Fields that say how it was trained; what was trained is in the tensors. `init_lora_weights` is judged by value."""
NOT_MERGEABLE: Mapping[str, str] = {
    "alora_invocation_tokens": "it acts only after certain tokens, which no single set of weights can express",
    "arrow_config": "it chooses among adapters for every token, which no single set of weights can express",
    "kasa_config": "it changed the base model's weights while training",
    "layer_replication": "it repeats layers of the base model",
    "megatron_config": "it was trained on Megatron's parallel layers",
    "monteclora_config": "it samples its weights",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "its inputs are pooled in groups",
    "velora_config": "its layers are VeLoRA's own",
}
MODIFIES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations after which the adapter is relative to a changed base model, which isn't saved with it."""
INITIAL_MARKER = "unsloth_lora_init.json"
LAYOUTS = ("rank_major",)


def refusals(fields: Mapping[str, Any], *, marked: bool) -> list[Refusal]:
    """Every feature the merge can't express; `marked` when Unsloth's marker of such an initialisation is there."""
    return [*_kind(fields), *_features(fields), *_initialisation(fields, marked=marked), *_expert_layout(fields)]


def _kind(fields: Mapping[str, Any]) -> Iterator[Refusal]:
    other = other_kind(fields)
    if other:
        yield Refusal(
            ProblemCode.NOT_LORA,
            other.message,
            other.where,
            "Merge it with PEFT's own merge_and_unload, if it has one, and convert what that saves.",
        )
    task = fields.get("task_type")
    if task not in {None, *TEXT_TASKS}:
        yield _unsupported("task_type", f"it is for {clip(task)} and not for generating text")


def _features(fields: Mapping[str, Any]) -> Iterator[Refusal]:
    for name, value in fields.items():
        if not value or name in MERGED | WITHOUT_MEANING:
            continue
        yield _unsupported(name, NOT_MERGEABLE.get(name, "what this field asks for is not known here"))


def _initialisation(fields: Mapping[str, Any], *, marked: bool) -> Iterator[Refusal]:
    way = fields.get("init_lora_weights")
    if marked or (isinstance(way, str) and way.lower().startswith(MODIFIES_BASE)):
        yield Refusal(
            ProblemCode.UNSUPPORTED_FEATURE,
            f"It was initialised by {clip(way) if isinstance(way, str) else 'PiSSA'}, which changes the base model's "
            "weights: the adapter is relative to a base that isn't here.",
            "init_lora_weights",
            "Save it with path_initial_model_for_weight_conversion, or as a merged model with "
            "save_pretrained_merged, where it was trained.",
        )


def _expert_layout(fields: Mapping[str, Any]) -> Iterator[Refusal]:
    """Unsloth packed lora_B of fused experts expert by expert for some months and didn't say so in the file."""
    mapping = fields.get("auto_mapping")
    by_unsloth = isinstance(mapping, dict) and mapping.get("unsloth_fixed")
    layout = fields.get("lora_B_layout")
    if fields.get("target_parameters") and layout not in LAYOUTS and (by_unsloth or layout):
        yield Refusal(
            ProblemCode.UNSUPPORTED_FEATURE,
            "How the experts are packed in lora_B isn't stated, and it was saved by an Unsloth version that packed "
            "them in one of two ways.",
            "lora_B_layout",
            "Save it again with Unsloth 2026.9.6 or newer, which states it.",
        )


def _unsupported(field: str, why: str) -> Refusal:
    return Refusal(
        ProblemCode.UNSUPPORTED_FEATURE,
        f"{clip(field)} can't be merged: {why}.",
        field[:60],
        "Train without it, or serve it with what trained it.",
    )
