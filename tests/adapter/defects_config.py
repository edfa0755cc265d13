"""What is wrong in adapter_config.json: its form, the kind of fine-tuning, the base it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapter.spoiling import (
    CONFIG,
    Defects,
    edit_config,
)

if TYPE_CHECKING:
    from pathlib import Path

DEFECTS = Defects()

# The configuration file


@DEFECTS.spoiled("config_missing", "adapter_config.json was not copied")
def config_left_behind(directory: Path) -> None:
    (directory / CONFIG).unlink()


@DEFECTS.spoiled("config_invalid", "adapter_config.json is empty: the disk was full")
def config_of_no_bytes(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b"")


@DEFECTS.spoiled("config_invalid", "adapter_config.json was cut off")
def config_cut_off(directory: Path) -> None:
    (directory / CONFIG).write_bytes((directory / CONFIG).read_bytes()[:200])


@DEFECTS.spoiled("config_invalid", "adapter_config.json is a list")
def config_of_a_list(directory: Path) -> None:
    (directory / CONFIG).write_text("[]")


@DEFECTS.spoiled("config_invalid", "adapter_config.json is not UTF-8")
def config_not_text(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b'{"r": "\xff\xfe"}')


@DEFECTS.spoiled("config_invalid", "adapter_config.json is nested a hundred thousand deep")
def config_nested_deep(directory: Path) -> None:
    (directory / CONFIG).write_text('{"r":' + "[" * 100_000 + "]" * 100_000 + "}")


@DEFECTS.spoiled("too_large", "adapter_config.json has two megabytes")
def config_too_large(directory: Path) -> None:
    edit_config(directory, padding="x" * (2 << 20))


@DEFECTS.spoiled("config_invalid", "lora_alpha is NaN")
def alpha_not_a_number(directory: Path) -> None:
    edit_config(directory, lora_alpha=float("nan"))


@DEFECTS.spoiled("config_invalid", "lora_alpha is 1e400, which is infinite once read")
def alpha_infinite(directory: Path) -> None:
    edit_config(directory, lora_alpha="ALPHA")
    path = directory / CONFIG
    path.write_text(path.read_text().replace('"ALPHA"', "1e400"))


DEFECTS.configured("r_missing", "config_invalid", "the field r was lost", r=...)
DEFECTS.configured("alpha_missing", "config_invalid", "the field lora_alpha was lost", lora_alpha=...)
DEFECTS.configured("targets_missing", "config_invalid", "the field target_modules was lost", target_modules=...)
DEFECTS.configured("peft_type_missing", "config_invalid", "the field peft_type was lost", peft_type=...)
DEFECTS.configured("r_zero", "config_invalid", "r is 0", r=0)
DEFECTS.configured("r_negative", "config_invalid", "r is -8", r=-8)
DEFECTS.configured("r_text", "config_invalid", 'r is "8"', r="8")
DEFECTS.configured("r_true", "config_invalid", "r is true", r=True)
DEFECTS.configured("r_fraction", "config_invalid", "r is 8.5", r=8.5)
DEFECTS.configured("r_null", "config_invalid", "r is null", r=None)
DEFECTS.configured("alpha_text", "config_invalid", 'lora_alpha is "16"', lora_alpha="16")
DEFECTS.configured("alpha_negative", "config_invalid", "lora_alpha is -16", lora_alpha=-16)
DEFECTS.configured("alpha_zero", "no_effect", "lora_alpha is 0", lora_alpha=0)
DEFECTS.configured(
    "rslora_text", "config_invalid", 'use_rslora is "false", which is true once read', use_rslora="false"
)
DEFECTS.configured("rank_pattern_text", "config_invalid", 'a rank in rank_pattern is "8"', rank_pattern={"q_proj": "8"})
DEFECTS.configured("rank_pattern_list", "config_invalid", "rank_pattern is a list", rank_pattern=[8])
DEFECTS.configured(
    "rank_pattern_endless",
    "config_invalid",
    "a key of rank_pattern is an expression that takes years to match",
    rank_pattern={"(([a-z_.0-9]+)+)+!": 8},
)
DEFECTS.configured("no_targets", "config_invalid", "target_modules is empty", target_modules=[])
DEFECTS.configured("targets_number", "config_invalid", "target_modules is a number", target_modules=7)
DEFECTS.configured(
    "regex_and_layers",
    "config_invalid",
    "layers_to_transform beside a regular expression, which PEFT refuses",
    target_modules=".*q_proj",
    layers_to_transform=[0],
)
DEFECTS.configured("layers_pattern_alone", "config_invalid", "layers_pattern without layers", layers_pattern="layers")


# What kind of fine-tuning it is

for kind in ("IA3", "LOHA", "LOKR", "ADALORA", "OFT", "PROMPT_TUNING", "VERA"):
    DEFECTS.configured(f"peft_type_{kind.lower()}", "not_lora", f"another method of PEFT's: {kind}", peft_type=kind)
DEFECTS.configured("dora_flag", "unsupported_feature", "use_dora is set", use_dora=True)
DEFECTS.configured("lora_bias_flag", "unsupported_feature", "lora_bias is set", lora_bias=True)
DEFECTS.configured("bias_all", "unsupported_feature", "the base's biases were trained", bias="all")
DEFECTS.configured("bias_lora_only", "unsupported_feature", "biases of adapted layers were trained", bias="lora_only")
DEFECTS.configured(
    "classifier",
    "unsupported_feature",
    "a classifier with its head in modules_to_save",
    task_type="SEQ_CLS",
    modules_to_save=["classifier", "score"],
)
DEFECTS.configured("embedding_task", "unsupported_feature", "an embedding model", task_type="FEATURE_EXTRACTION")
DEFECTS.configured(
    "saved_modules_lost",
    "unsupported_feature",
    "model.save_lora left out the embedding that modules_to_save names",
    modules_to_save=["embed_tokens"],
)
DEFECTS.configured(
    "trained_tokens_flag", "unsupported_feature", "single tokens were trained", trainable_token_indices=[5, 6]
)
DEFECTS.configured("alora", "unsupported_feature", "activated LoRA", alora_invocation_tokens=[1, 2])
DEFECTS.configured(
    "replicated_layers", "unsupported_feature", "layers of the base were replicated", layer_replication=[[0, 9]]
)
DEFECTS.configured(
    "block_diagonal", "unsupported_feature", "block-diagonal LoRA", use_bdlora={"target_modules_bd_a": ["q_proj"]}
)
DEFECTS.configured("qalora", "unsupported_feature", "QALoRA", use_qalora=True)
DEFECTS.configured("kasa", "unsupported_feature", "KaSA, which truncates the base", kasa_config={"beta": 1e-4})
for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq"):
    DEFECTS.configured(
        f"init_{init}",
        "unsupported_feature",
        f"initialised by {init}: relative to a changed base",
        init_lora_weights=init,
    )
DEFECTS.configured("init_unknown", "unsupported_feature", "an initialisation nobody knows", init_lora_weights="mystery")


# The base model

DEFECTS.configured(
    "other_base", "base_mismatch", "trained on another model", base_model_name_or_path="unsloth/Llama-3.2-1B-Instruct"
)
DEFECTS.configured(
    "other_size",
    "base_mismatch",
    "trained on a larger sister",
    base_model_name_or_path="unsloth/SmolLM2-360M-Instruct-bnb-4bit",
)
DEFECTS.configured(
    "pretrained_base",
    "base_mismatch",
    "trained on the base without instructions, whose shapes are the same",
    base_model_name_or_path="HuggingFaceTB/SmolLM2-135M",
)
DEFECTS.configured(
    "stranger_of_the_same_name",
    "base_mismatch",
    "trained on somebody's model of the same name",
    base_model_name_or_path="somebody/SmolLM2-135M-Instruct",
)
