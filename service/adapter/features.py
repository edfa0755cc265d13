"""Kinds of fine-tuning that PEFT can write and the engine can't serve as a plain LoRA, by configuration field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.adapter.config import clip
from service.adapter.spec import Problem, ProblemCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MERGE = (
    'Merge it and serve it as its own base: model.save_pretrained_merged(DIR, tokenizer, save_method="merged_16bit") '
    "in Unsloth, or `loradock convert SRC OUT` from this directory."
)
RETRAIN = "Train it again as plain LoRA, or merge it with the library that trained it and serve it as its own base."
UNBAKE = (
    "Its weights are relative to a changed copy of the base. Merge it with "
    'model.save_pretrained_merged(DIR, tokenizer, save_method="merged_16bit") where it was trained, or save it with '
    "PEFT's path_initial_model_for_weight_conversion. Changing init_lora_weights by hand would serve wrong answers."
)
HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Initialisations that leave the base as it is; what was trained from them is plain LoRA."""
TEXT_TASKS = frozenset({"CAUSAL_LM"})

_FLAGS: Mapping[str, tuple[str, str]] = {
    "use_dora": ("It is a DoRA adapter; the engine has no weight-decomposed LoRA.", MERGE),
    "lora_bias": ("It trains biases of its own (lora_bias), which the engine can't add.", MERGE),
    "trainable_token_indices": ("It trains single token embeddings, which are shared by all who are served.", MERGE),
    "use_qalora": ("It is a QALoRA adapter, which pools its inputs.", RETRAIN),
    "use_bdlora": ("It is a block-diagonal LoRA adapter.", RETRAIN),
    "alora_invocation_tokens": ("It is an activated LoRA, which acts from an invocation sequence on.", RETRAIN),
    "layer_replication": ("It replicates layers of the base.", MERGE),
    "kasa_config": ("It is a KaSA adapter, whose base weights are truncated.", RETRAIN),
    "monteclora_config": ("It is a MonteCLoRA adapter, which samples its weights.", RETRAIN),
    "arrow_config": ("It routes between several adapters (Arrow).", RETRAIN),
}


def other_kind(fields: Mapping[str, Any]) -> Problem | None:
    """`not_lora` when the configuration says it is another method of PEFT's."""
    kind = fields.get("peft_type", "LORA")
    if kind == "LORA":
        return None
    return Problem(
        ProblemCode.NOT_LORA,
        f"It is not LoRA but {clip(kind)}.",
        "peft_type",
        "Only LoRA adapters are served. Merge it into its base with the library that trained it.",
    )


def unsupported_features(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Every feature the configuration asks for that can't be served beside others.

    `modules_to_save` is not among them: whether it matters depends on the tensors.
    """
    for name, (message, remedy) in _FLAGS.items():
        # PEFT takes an empty table or list for a feature that is on.
        if fields.get(name) not in (None, False):
            yield _unsupported(name, message, remedy)
    if fields.get("bias", "none") != "none":
        yield _unsupported("bias", f"It trains the base's biases (bias={clip(fields['bias'])}).", MERGE)
    init = fields.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in HARMLESS_INITS:
        yield _unsupported("init_lora_weights", f"It was initialised by changing the base ({clip(init)}).", UNBAKE)
    task = fields.get("task_type")
    if isinstance(task, str) and task not in TEXT_TASKS:
        message = f"It was trained for {clip(task)}; this service generates text."
        yield _unsupported("task_type", message, "Serve it with an engine for that task.")


def _unsupported(where: str, message: str, remedy: str) -> Problem:
    return Problem(ProblemCode.UNSUPPORTED_FEATURE, message, where, remedy)
