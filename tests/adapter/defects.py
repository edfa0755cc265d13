"""Spoiled adapters: what trainers, uploads, disks and strangers do to a healthy directory, and the code of each.

Every defect takes a healthy adapter's directory and spoils a copy of it. `expected` is the whole set of problem codes
the inspection has to answer with when the engine's largest rank is `MAX_RANK`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]
    Tensors = dict[str, Array]
    Spoil = Callable[[Path], None]

MAX_RANK = 32
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model.model"
Q0 = f"{ROOT}.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Defect:
    """One way to spoil an adapter."""

    name: str
    expected: frozenset[str]
    story: str
    """What happened to it, for people."""
    spoil: Spoil

    def make(self, healthy: Path, target: Path) -> Path:
        """A spoiled copy of `healthy` in the new directory `target`."""
        shutil.copytree(healthy, target, ignore=shutil.ignore_patterns("README.md"))
        for file in target.iterdir():
            file.chmod(0o644)
        self.spoil(target)
        return target


DEFECTS: list[Defect] = []


def defect(expected: str, story: str) -> Callable[[Spoil], Spoil]:
    """Register the function below as a defect of its name."""

    def register(spoil: Spoil) -> Spoil:
        DEFECTS.append(Defect(spoil.__name__, frozenset(expected.split()), story, spoil))
        return spoil

    return register


def configured(name: str, expected: str, story: str, **changes: Any) -> None:
    """Register a defect that only changes fields of adapter_config.json; `...` takes a field away."""

    def spoil(directory: Path) -> None:
        edit_config(directory, **changes)

    DEFECTS.append(Defect(name, frozenset(expected.split()), story, spoil))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def edit_tensors(directory: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edited = edit(tensors)
    save_file(tensors if edited is None else edited, directory / WEIGHTS, metadata={"format": "pt"})


def edit_header(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = directory / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def edit_json(directory: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((directory / name).read_text())
    edit(document)
    (directory / name).write_text(json.dumps(document))


def scaled(tensors: Tensors, factor: float, part: str = "") -> Tensors:
    return {name: array * np.float32(factor) if part in name else array for name, array in tensors.items()}


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): array for name, array in tensors.items()}


def ranked(tensors: Tensors, rank: int) -> Tensors:
    """The same adapter cut or repeated to another rank."""

    def resize(name: str, array: Array) -> Array:
        return np.resize(array, (rank, array.shape[1]) if "lora_A" in name else (array.shape[0], rank))

    return {name: resize(name, array) for name, array in tensors.items()}


# The configuration file


@defect("config_missing", "adapter_config.json was not copied")
def config_left_behind(directory: Path) -> None:
    (directory / CONFIG).unlink()


@defect("config_invalid", "adapter_config.json is empty: the disk was full")
def config_of_no_bytes(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b"")


@defect("config_invalid", "adapter_config.json was cut off")
def config_cut_off(directory: Path) -> None:
    (directory / CONFIG).write_bytes((directory / CONFIG).read_bytes()[:200])


@defect("config_invalid", "adapter_config.json is a list")
def config_of_a_list(directory: Path) -> None:
    (directory / CONFIG).write_text("[]")


@defect("config_invalid", "adapter_config.json is not UTF-8")
def config_not_text(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b'{"r": "\xff\xfe"}')


@defect("config_invalid", "adapter_config.json is nested a hundred thousand deep")
def config_nested_deep(directory: Path) -> None:
    (directory / CONFIG).write_text('{"r":' + "[" * 100_000 + "]" * 100_000 + "}")


@defect("too_large", "adapter_config.json has two megabytes")
def config_too_large(directory: Path) -> None:
    edit_config(directory, padding="x" * (2 << 20))


@defect("config_invalid", "lora_alpha is NaN")
def alpha_not_a_number(directory: Path) -> None:
    edit_config(directory, lora_alpha=float("nan"))


@defect("config_invalid", "lora_alpha is 1e400, which is infinite once read")
def alpha_infinite(directory: Path) -> None:
    edit_config(directory, lora_alpha="ALPHA")
    path = directory / CONFIG
    path.write_text(path.read_text().replace('"ALPHA"', "1e400"))


configured("r_missing", "config_invalid", "the field r was lost", r=...)
configured("alpha_missing", "config_invalid", "the field lora_alpha was lost", lora_alpha=...)
configured("targets_missing", "config_invalid", "the field target_modules was lost", target_modules=...)
configured("peft_type_missing", "config_invalid", "the field peft_type was lost", peft_type=...)
configured("r_zero", "config_invalid", "r is 0", r=0)
configured("r_negative", "config_invalid", "r is -8", r=-8)
configured("r_text", "config_invalid", 'r is "8"', r="8")
configured("r_true", "config_invalid", "r is true", r=True)
configured("r_fraction", "config_invalid", "r is 8.5", r=8.5)
configured("r_null", "config_invalid", "r is null", r=None)
configured("alpha_text", "config_invalid", 'lora_alpha is "16"', lora_alpha="16")
configured("alpha_negative", "config_invalid", "lora_alpha is -16", lora_alpha=-16)
configured("alpha_zero", "no_effect", "lora_alpha is 0", lora_alpha=0)
configured("rslora_text", "config_invalid", 'use_rslora is "false", which is true once read', use_rslora="false")
configured("rank_pattern_text", "config_invalid", 'a rank in rank_pattern is "8"', rank_pattern={"q_proj": "8"})
configured("rank_pattern_list", "config_invalid", "rank_pattern is a list", rank_pattern=[8])
configured(
    "rank_pattern_endless",
    "config_invalid",
    "a key of rank_pattern is an expression that takes years to match",
    rank_pattern={"(([a-z_.0-9]+)+)+!": 8},
)
configured("no_targets", "config_invalid", "target_modules is empty", target_modules=[])
configured("targets_number", "config_invalid", "target_modules is a number", target_modules=7)
configured(
    "regex_and_layers",
    "config_invalid",
    "layers_to_transform beside a regular expression, which PEFT refuses",
    target_modules=".*q_proj",
    layers_to_transform=[0],
)
configured("layers_pattern_alone", "config_invalid", "layers_pattern without layers", layers_pattern="layers")

# What kind of fine-tuning it is

for kind in ("IA3", "LOHA", "LOKR", "ADALORA", "OFT", "PROMPT_TUNING", "VERA"):
    configured(f"peft_type_{kind.lower()}", "not_lora", f"another method of PEFT's: {kind}", peft_type=kind)
configured("dora_flag", "unsupported_feature", "use_dora is set", use_dora=True)
configured("lora_bias_flag", "unsupported_feature", "lora_bias is set", lora_bias=True)
configured("bias_all", "unsupported_feature", "the base's biases were trained", bias="all")
configured("bias_lora_only", "unsupported_feature", "biases of adapted layers were trained", bias="lora_only")
configured(
    "classifier",
    "unsupported_feature",
    "a classifier with its head in modules_to_save",
    task_type="SEQ_CLS",
    modules_to_save=["classifier", "score"],
)
configured("embedding_task", "unsupported_feature", "an embedding model", task_type="FEATURE_EXTRACTION")
configured(
    "saved_modules_lost",
    "unsupported_feature",
    "model.save_lora left out the embedding that modules_to_save names",
    modules_to_save=["embed_tokens"],
)
configured("trained_tokens_flag", "unsupported_feature", "single tokens were trained", trainable_token_indices=[5, 6])
configured("alora", "unsupported_feature", "activated LoRA", alora_invocation_tokens=[1, 2])
configured("replicated_layers", "unsupported_feature", "layers of the base were replicated", layer_replication=[[0, 9]])
configured(
    "block_diagonal", "unsupported_feature", "block-diagonal LoRA", use_bdlora={"target_modules_bd_a": ["q_proj"]}
)
configured("qalora", "unsupported_feature", "QALoRA", use_qalora=True)
configured("kasa", "unsupported_feature", "KaSA, which truncates the base", kasa_config={"beta": 1e-4})
for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq"):
    configured(
        f"init_{init}",
        "unsupported_feature",
        f"initialised by {init}: relative to a changed base",
        init_lora_weights=init,
    )
configured("init_unknown", "unsupported_feature", "an initialisation nobody knows", init_lora_weights="mystery")

# The base model

configured(
    "other_base", "base_mismatch", "trained on another model", base_model_name_or_path="unsloth/Llama-3.2-1B-Instruct"
)
configured(
    "other_size",
    "base_mismatch",
    "trained on a larger sister",
    base_model_name_or_path="unsloth/SmolLM2-360M-Instruct-bnb-4bit",
)
configured(
    "pretrained_base",
    "base_mismatch",
    "trained on the base without instructions, whose shapes are the same",
    base_model_name_or_path="HuggingFaceTB/SmolLM2-135M",
)
configured(
    "stranger_of_the_same_name",
    "base_mismatch",
    "trained on somebody's model of the same name",
    base_model_name_or_path="somebody/SmolLM2-135M-Instruct",
)

# The weights' file


@defect("weights_missing", "the weights were not copied")
def weights_left_behind(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


@defect("weights_pickle", "saved with safe_serialization=False")
def weights_pickled(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


@defect("weights_incomplete", "the copy stopped inside the tensors")
def weights_cut_off(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size - 1000)


@defect("weights_incomplete", "the copy stopped inside the header")
def header_cut_off(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 1000)


@defect("weights_incomplete", "the copy had not begun")
def weights_of_no_bytes(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 0)


@defect("weights_invalid", "something was appended")
def weights_too_long(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 16)


@defect("weights_invalid", "a login page was saved in the place of the weights")
def weights_a_web_page(directory: Path) -> None:
    (directory / WEIGHTS).write_text("<!DOCTYPE html><title>Log in</title>" * 100)


@defect("weights_invalid", "git clone without Git LFS")
def weights_a_pointer(directory: Path) -> None:
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9823216\n")


@defect("weights_invalid", "a pickle under the name of safetensors")
def weights_a_renamed_pickle(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"PK\x03\x04" + b"\0" * 4096)


@defect("weights_invalid", "the header says it is 2^63 bytes long")
def header_endless(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((1 << 63).to_bytes(8, "little") + b"{}")


@defect("weights_invalid", "the header is not JSON")
def header_not_json(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((16).to_bytes(8, "little") + b"{" * 16)


@defect("weights_invalid", "the header is nested deep")
def header_nested_deep(directory: Path) -> None:
    text = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


@defect("weights_invalid", "two tensors share their bytes")
def tensors_overlap(directory: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        rows = [row for name, row in header.items() if name != "__metadata__"]
        rows[1]["data_offsets"] = [offset - 4 for offset in rows[1]["data_offsets"]]

    edit_header(directory, overlap)


@defect("weights_invalid", "offsets reach backwards")
def tensor_backwards(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"]["data_offsets"].reverse())


@defect("weights_invalid", "a shape that doesn't fit its bytes")
def tensor_of_other_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(shape=[8, 577]))


@defect("weights_invalid", "a type safetensors doesn't have")
def tensor_of_unknown_type(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(dtype="F12"))


@defect("weights_invalid", "a negative dimension")
def tensor_of_negative_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(shape=[-8, -576]))


@defect("weights_invalid", "a tensor whose name holds control characters")
def tensor_name_of_control_characters(directory: Path) -> None:
    edit_header(directory, lambda header: header.update({"\x1b[2J": header.pop(f"{Q0}.lora_A.weight")}))


@defect("path_forbidden", "the weights are a link to a file elsewhere")
def weights_a_link(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("/etc/hostname")


@defect("path_forbidden", "the configuration is a link")
def config_a_link(directory: Path) -> None:
    (directory / CONFIG).rename(directory / "elsewhere.json")
    (directory / CONFIG).symlink_to("elsewhere.json")


@defect("path_forbidden", "the weights are a pipe nobody writes to")
def weights_a_pipe(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


@defect("path_forbidden", "the weights are a directory")
def weights_a_directory(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()


@defect("path_forbidden", "the chat template is a link to a secret")
def template_a_link(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.jinja").symlink_to("/etc/passwd")


# Its tensors


@defect("weights_dtype", "stored as 8-bit integers")
def weights_of_integers(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array.astype(np.int8) for name, array in tensors.items()})


@defect("weights_dtype", "one matrix stored as 8-bit floats")
def weights_of_small_floats(directory: Path) -> None:
    def shrink(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"].astype(ml_dtypes.float8_e4m3fn)

    edit_tensors(directory, shrink)


@defect("no_effect", "a file without tensors")
def weights_of_no_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda _: {})


@defect("pair_missing", "only lora_A was saved")
def half_without_b(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array for name, array in tensors.items() if "lora_A" in name})


@defect("pair_missing", "only lora_B was saved")
def half_without_a(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array for name, array in tensors.items() if "lora_B" in name})


@defect("pair_missing", "one lora_B was lost")
def one_without_b(directory: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors[f"{Q0}.lora_B.weight"]

    edit_tensors(directory, lose)


configured("r_of_another_run", "rank_mismatch", "the configuration of a run with r=16", r=16)
configured(
    "pattern_of_another_run",
    "rank_mismatch",
    "the rank_pattern of another run",
    rank_pattern={"layers.3.mlp.up_proj": 4},
)


@defect("rank_mismatch", "lora_A and lora_B of two different runs")
def ranks_of_two_runs(directory: Path) -> None:
    def mix(tensors: Tensors) -> Tensors:
        other = ranked(tensors, 16)
        return {name: (other if "lora_B" in name else tensors)[name] for name in tensors}

    edit_tensors(directory, mix)


@defect("rank_too_large", "rank 64, the service takes 32")
def rank_above_the_limit(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: ranked(tensors, 64))
    edit_config(directory, r=64, lora_alpha=64)


configured(
    "pattern_above_the_limit",
    "rank_too_large",
    "a rank_pattern that asks for more than the service takes, if only for modules that don't exist",
    rank_pattern={"some_proj": 256},
)


@defect("shape_mismatch rank_mismatch", "every matrix was saved transposed")
def matrices_transposed(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: np.ascontiguousarray(array.T) for name, array in tensors.items()})


@defect("shape_mismatch", "trained on a smaller model whose modules have the same names")
def smaller_base(directory: Path) -> None:
    def shrink(name: str, array: Array) -> Array:
        return np.ascontiguousarray(array[:, :64] if "lora_A" in name else array[:64])

    edit_tensors(directory, lambda tensors: {name: shrink(name, array) for name, array in tensors.items()})
    edit_config(directory, base_model_name_or_path="outputs/my-small-model")


@defect("shape_mismatch", "trained on a larger model whose modules have the same names")
def larger_base(directory: Path) -> None:
    def grow(name: str, array: Array) -> Array:
        return np.tile(array, (1, 2) if "lora_A" in name else (2, 1))

    edit_tensors(directory, lambda tensors: {name: grow(name, array) for name, array in tensors.items()})
    edit_config(directory, base_model_name_or_path="outputs/my-large-model")


@defect("shape_mismatch", "a lora_A of three dimensions")
def matrix_of_three_dimensions(directory: Path) -> None:
    def deepen(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"][:, :, None]

    edit_tensors(directory, deepen)


@defect("unknown_module", "trained on a deeper model: there is a layer 30")
def layer_too_many(directory: Path) -> None:
    edit_tensors(
        directory,
        lambda tensors: (
            tensors
            | renamed(
                {name: array for name, array in tensors.items() if ".layers.0." in name}, ".layers.0.", ".layers.30."
            )
        ),
    )


@defect("unknown_module", "trained on another architecture")
def other_architecture(directory: Path) -> None:
    edit_tensors(
        directory, lambda tensors: renamed(renamed(tensors, "model.layers.", "transformer.h."), "self_attn", "attn")
    )


@defect("unknown_module", "the vision part of a model was trained, too")
def vision_tower(directory: Path) -> None:
    def see(tensors: Tensors) -> Tensors:
        text = {name: array for name, array in tensors.items() if ".layers.0." in name}
        return tensors | renamed(text, "model.layers.0", "visual.blocks.0")

    edit_tensors(directory, see)


@defect("unknown_module", "fused projections of another family of models")
def fused_projections(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: renamed(tensors, "q_proj", "qkv_proj"))


@defect("unknown_module", "experts, on a base that has none")
def experts_without_experts(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: renamed(tensors, "mlp.down_proj", "mlp.experts"))


@defect("unsupported_feature", "DoRA magnitudes, with the flag lost")
def dora_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_magnitude_vector": np.ones(576, np.float32)})


@defect("unsupported_feature", "biases of lora_B, with the flag lost")
def lora_bias_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_B.bias": np.ones(576, np.float32)})


@defect("unsupported_feature", "trained token embeddings, with the field lost")
def trained_tokens(directory: Path) -> None:
    name = f"{ROOT}.embed_tokens.token_adapter.trainable_tokens_delta"
    edit_tensors(directory, lambda tensors: tensors | {name: np.ones((3, 576), np.float32)})


@defect("unsupported_feature", "a LoRA of the output layer")
def head_adapted(directory: Path) -> None:
    pair = {
        "base_model.model.lm_head.lora_A.weight": np.ones((8, 576), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((49152, 8), np.float32),
    }
    edit_tensors(directory, lambda tensors: tensors | pair)


@defect("unsupported_feature", "a LoRA of the embedding")
def embedding_adapted(directory: Path) -> None:
    pair = {
        f"{ROOT}.embed_tokens.lora_embedding_A": np.ones((8, 49152), np.float32),
        f"{ROOT}.embed_tokens.lora_embedding_B": np.ones((576, 8), np.float32),
    }
    edit_tensors(directory, lambda tensors: tensors | pair)


@defect("unsupported_feature", "a norm was trained as a whole")
def norm_trained(directory: Path) -> None:
    name = f"{ROOT}.layers.0.input_layernorm.weight"
    edit_tensors(directory, lambda tensors: tensors | {name: np.full(576, 7, np.float32)})
    edit_config(directory, modules_to_save=["input_layernorm"])


@defect("unsupported_feature vocabulary_mismatch", "tokens were added and the embedding grew by three rows")
def embedding_grown(directory: Path) -> None:
    name = f"{ROOT}.embed_tokens.weight"
    edit_tensors(directory, lambda tensors: tensors | {name: np.zeros((49155, 576), np.float32)})
    edit_config(directory, modules_to_save=["embed_tokens"])


@defect("unsupported_feature", "tensors of an optimizer")
def foreign_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {"optimizer.exp_avg": np.zeros(4, np.float32)})


@defect("weights_invalid", "a matrix twice, once under PEFT's internal name")
def matrix_twice(directory: Path) -> None:
    name = f"{Q0}.lora_A.weight"
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_A.default.weight": tensors[name] * 2})


configured("layout_unknown", "unsupported_feature", "experts packed in a way nobody knows", lora_B_layout="by_mood")


@defect("weights_invalid", "a pair twice, once as that of a wrapped projection")
def pair_twice(directory: Path) -> None:
    def wrap(tensors: Tensors) -> Tensors:
        pair = {name: array * 2 for name, array in tensors.items() if name.startswith(Q0)}
        return tensors | renamed(pair, ".lora_", ".linear.lora_")

    edit_tensors(directory, wrap)


@defect("unsupported_feature", "a foreign tensor larger than any module")
def foreign_tensor_large(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {"moments": np.full((65, 1 << 18), np.nan, np.float32)})


# Its numbers


def _poison(value: float, name: str) -> Spoil:
    def spoil(directory: Path) -> None:
        def poison(tensors: Tensors) -> None:
            tensors[name] = tensors[name].copy()
            tensors[name][-1, -1] = value

        edit_tensors(directory, poison)

    return spoil


for label, value in (("nan", float("nan")), ("inf", float("inf")), ("minus_inf", float("-inf"))):
    for part in "AB":
        spoil = _poison(value, f"{ROOT}.layers.29.mlp.up_proj.lora_{part}.weight")
        story, codes = f"a single {value} in a lora_{part}", frozenset({"not_finite"})
        DEFECTS += [Defect(f"one_{label}_in_{part.lower()}", codes, story, spoil)]


@defect("not_finite", "training diverged: everything is NaN")
def all_nan(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, float("nan")))


@defect("overflow", "every weight a million times too large")
def million_times_too_large(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 1e6))


@defect("overflow", "every weight thirty times too large: finite, and nothing of the base is left")
def thirty_times_too_large(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 30))


configured("alpha_of_a_million", "overflow", "lora_alpha is a million", lora_alpha=1_000_000)


@defect("overflow", "64-bit numbers beyond bfloat16")
def beyond_the_serving_type(directory: Path) -> None:
    def widen(tensors: Tensors) -> None:
        name = f"{Q0}.lora_B.weight"
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name][0, 0] = 1e39

    edit_tensors(directory, widen)


@defect("no_effect", "saved before training: every lora_B is zero")
def never_trained(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 0, "lora_B"))


@defect("no_effect", "every lora_A is zero")
def zeroed(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 0, "lora_A"))


@defect("no_effect", "numbers so small that the serving type has no such number")
def vanishing(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(scaled(tensors, 1e-30), 1e-12))


# Its tokenizer and template


@defect("vocabulary_mismatch", "three tokens were added")
def tokens_added(directory: Path) -> None:
    added = [{"id": 49152 + number, "content": f"<tool_{number}>", "special": True} for number in range(3)]
    edit_json(directory, "tokenizer.json", lambda document: document["added_tokens"].extend(added))


@defect("vocabulary_mismatch", "tokens that only tokenizer_config.json adds")
def tokens_added_on_the_side(directory: Path) -> None:
    added = {"49152": {"content": "<tool>", "special": True}}
    edit_json(directory, "tokenizer_config.json", lambda fields: fields.update(added_tokens_decoder=added))


@defect("vocabulary_mismatch", "the tokenizer of another model")
def other_tokenizer(directory: Path) -> None:
    def rotate(document: dict[str, Any]) -> None:
        texts = list(document["model"]["vocab"])
        document["model"]["vocab"] = {text: number for number, text in enumerate(texts[1000:] + texts[:1000])}

    edit_json(directory, "tokenizer.json", rotate)


@defect("vocabulary_mismatch", "an end token that is in no vocabulary")
def end_token_unknown(directory: Path) -> None:
    edit_json(directory, "tokenizer_config.json", lambda fields: fields.update({"eos_token": "<|nowhere|>"}))


@defect("config_invalid", "tokenizer.json was cut off")
def tokenizer_cut_off(directory: Path) -> None:
    os.truncate(directory / "tokenizer.json", 100_000)


@defect("config_invalid", "tokenizer_config.json is a list")
def tokenizer_settings_of_a_list(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text("[]")


@defect("config_invalid", "the chat template is not Jinja")
def template_broken(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}")


@defect("too_large", "the chat template has two megabytes")
def template_too_large(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("x" * (2 << 20))


# Directories that are something else


def _only(directory: Path, *files: str) -> None:
    for path in directory.iterdir():
        path.unlink()
    for name in files:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")


@defect("config_missing weights_missing", "an empty directory")
def empty_directory(directory: Path) -> None:
    _only(directory)


@defect("config_missing weights_missing", "a trainer's output directory with two checkpoints")
def output_directory(directory: Path) -> None:
    _only(directory, "README.md", f"checkpoint-12/{CONFIG}", f"checkpoint-24/{CONFIG}")
    state = {"best_model_checkpoint": "/content/outputs/checkpoint-12", "log_history": []}
    (directory / "checkpoint-24" / "trainer_state.json").write_text(json.dumps(state))


@defect("config_missing weights_missing", "a merged model")
def merged_model(directory: Path) -> None:
    _only(directory, "config.json", "model.safetensors", "tokenizer.json")


@defect("config_missing weights_missing", "a GGUF file")
def gguf_file(directory: Path) -> None:
    _only(directory, "mine-lora-f16.gguf")


@defect("config_missing weights_missing", "adapters one level further down")
def one_level_too_high(directory: Path) -> None:
    _only(directory, f"german/{CONFIG}", f"french/{CONFIG}")


def by_name() -> Mapping[str, Defect]:
    """All defects; two of one name would hide each other."""
    table = {known.name: known for known in DEFECTS}
    assert len(table) == len(DEFECTS)
    return table
