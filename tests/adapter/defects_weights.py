"""What is wrong with the weights: the file, its tensors against the base, their numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from adapter.spoiling import (
    CONFIG,
    Q0,
    ROOT,
    WEIGHTS,
    Array,
    Defect,
    Defects,
    Spoil,
    Tensors,
    edit_config,
    edit_header,
    edit_tensors,
    ranked,
    renamed,
    scaled,
)

if TYPE_CHECKING:
    from pathlib import Path

DEFECTS = Defects()

# The weights' file


@DEFECTS.spoiled("weights_missing", "the weights were not copied")
def weights_left_behind(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


@DEFECTS.spoiled("weights_pickle", "saved with safe_serialization=False")
def weights_pickled(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


@DEFECTS.spoiled("weights_incomplete", "the copy stopped inside the tensors")
def weights_cut_off(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size - 1000)


@DEFECTS.spoiled("weights_incomplete", "the copy stopped inside the header")
def header_cut_off(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 1000)


@DEFECTS.spoiled("weights_incomplete", "the copy had not begun")
def weights_of_no_bytes(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 0)


@DEFECTS.spoiled("weights_invalid", "something was appended")
def weights_too_long(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 16)


@DEFECTS.spoiled("weights_invalid", "a login page was saved in the place of the weights")
def weights_a_web_page(directory: Path) -> None:
    (directory / WEIGHTS).write_text("<!DOCTYPE html><title>Log in</title>" * 100)


@DEFECTS.spoiled("weights_invalid", "git clone without Git LFS")
def weights_a_pointer(directory: Path) -> None:
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9823216\n")


@DEFECTS.spoiled("weights_invalid", "a pickle under the name of safetensors")
def weights_a_renamed_pickle(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"PK\x03\x04" + b"\0" * 4096)


@DEFECTS.spoiled("weights_invalid", "the header says it is 2^63 bytes long")
def header_endless(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((1 << 63).to_bytes(8, "little") + b"{}")


@DEFECTS.spoiled("weights_invalid", "the header is not JSON")
def header_not_json(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((16).to_bytes(8, "little") + b"{" * 16)


@DEFECTS.spoiled("weights_invalid", "the header is nested deep")
def header_nested_deep(directory: Path) -> None:
    text = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


@DEFECTS.spoiled("weights_invalid", "two tensors share their bytes")
def tensors_overlap(directory: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        rows = [row for name, row in header.items() if name != "__metadata__"]
        rows[1]["data_offsets"] = [offset - 4 for offset in rows[1]["data_offsets"]]

    edit_header(directory, overlap)


@DEFECTS.spoiled("weights_invalid", "offsets reach backwards")
def tensor_backwards(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"]["data_offsets"].reverse())


@DEFECTS.spoiled("weights_invalid", "a shape that doesn't fit its bytes")
def tensor_of_other_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(shape=[8, 577]))


@DEFECTS.spoiled("weights_invalid", "a type safetensors doesn't have")
def tensor_of_unknown_type(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(dtype="F12"))


@DEFECTS.spoiled("weights_invalid", "a negative dimension")
def tensor_of_negative_shape(directory: Path) -> None:
    edit_header(directory, lambda header: header[f"{Q0}.lora_A.weight"].update(shape=[-8, -576]))


@DEFECTS.spoiled("weights_invalid", "a tensor whose name holds control characters")
def tensor_name_of_control_characters(directory: Path) -> None:
    edit_header(directory, lambda header: header.update({"\x1b[2J": header.pop(f"{Q0}.lora_A.weight")}))


@DEFECTS.spoiled("path_forbidden", "the weights are a link to a file elsewhere")
def weights_a_link(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("/etc/hostname")


@DEFECTS.spoiled("path_forbidden", "the configuration is a link")
def config_a_link(directory: Path) -> None:
    (directory / CONFIG).rename(directory / "elsewhere.json")
    (directory / CONFIG).symlink_to("elsewhere.json")


@DEFECTS.spoiled("path_forbidden", "the weights are a pipe nobody writes to")
def weights_a_pipe(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


@DEFECTS.spoiled("path_forbidden", "the weights are a directory")
def weights_a_directory(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()


@DEFECTS.spoiled("path_forbidden", "the chat template is a link to a secret")
def template_a_link(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.jinja").symlink_to("/etc/passwd")


# Its tensors


@DEFECTS.spoiled("weights_dtype", "stored as 8-bit integers")
def weights_of_integers(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array.astype(np.int8) for name, array in tensors.items()})


@DEFECTS.spoiled("weights_dtype", "one matrix stored as 8-bit floats")
def weights_of_small_floats(directory: Path) -> None:
    def shrink(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"].astype(ml_dtypes.float8_e4m3fn)

    edit_tensors(directory, shrink)


@DEFECTS.spoiled("no_effect", "a file without tensors")
def weights_of_no_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda _: {})


@DEFECTS.spoiled("pair_missing", "only lora_A was saved")
def half_without_b(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array for name, array in tensors.items() if "lora_A" in name})


@DEFECTS.spoiled("pair_missing", "only lora_B was saved")
def half_without_a(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: array for name, array in tensors.items() if "lora_B" in name})


@DEFECTS.spoiled("pair_missing", "one lora_B was lost")
def one_without_b(directory: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors[f"{Q0}.lora_B.weight"]

    edit_tensors(directory, lose)


DEFECTS.configured("r_of_another_run", "rank_mismatch", "the configuration of a run with r=16", r=16)
DEFECTS.configured(
    "pattern_of_another_run",
    "rank_mismatch",
    "the rank_pattern of another run",
    rank_pattern={"layers.3.mlp.up_proj": 4},
)


@DEFECTS.spoiled("rank_mismatch", "lora_A and lora_B of two different runs")
def ranks_of_two_runs(directory: Path) -> None:
    def mix(tensors: Tensors) -> Tensors:
        other = ranked(tensors, 16)
        return {name: (other if "lora_B" in name else tensors)[name] for name in tensors}

    edit_tensors(directory, mix)


@DEFECTS.spoiled("rank_too_large", "rank 64, the service takes 32")
def rank_above_the_limit(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: ranked(tensors, 64))
    edit_config(directory, r=64, lora_alpha=64)


DEFECTS.configured(
    "pattern_above_the_limit",
    "rank_too_large",
    "a rank_pattern that asks for more than the service takes, if only for modules that don't exist",
    rank_pattern={"some_proj": 256},
)


@DEFECTS.spoiled("shape_mismatch rank_mismatch", "every matrix was saved transposed")
def matrices_transposed(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: np.ascontiguousarray(array.T) for name, array in tensors.items()})


@DEFECTS.spoiled("shape_mismatch", "trained on a smaller model whose modules have the same names")
def smaller_base(directory: Path) -> None:
    def shrink(name: str, array: Array) -> Array:
        return np.ascontiguousarray(array[:, :64] if "lora_A" in name else array[:64])

    edit_tensors(directory, lambda tensors: {name: shrink(name, array) for name, array in tensors.items()})
    edit_config(directory, base_model_name_or_path="outputs/my-small-model")


@DEFECTS.spoiled("shape_mismatch", "trained on a larger model whose modules have the same names")
def larger_base(directory: Path) -> None:
    def grow(name: str, array: Array) -> Array:
        return np.tile(array, (1, 2) if "lora_A" in name else (2, 1))

    edit_tensors(directory, lambda tensors: {name: grow(name, array) for name, array in tensors.items()})
    edit_config(directory, base_model_name_or_path="outputs/my-large-model")


@DEFECTS.spoiled("shape_mismatch", "a lora_A of three dimensions")
def matrix_of_three_dimensions(directory: Path) -> None:
    def deepen(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"][:, :, None]

    edit_tensors(directory, deepen)


@DEFECTS.spoiled("unknown_module", "trained on a deeper model: there is a layer 30")
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


@DEFECTS.spoiled("unknown_module", "trained on another architecture")
def other_architecture(directory: Path) -> None:
    edit_tensors(
        directory, lambda tensors: renamed(renamed(tensors, "model.layers.", "transformer.h."), "self_attn", "attn")
    )


@DEFECTS.spoiled("unknown_module", "the vision part of a model was trained, too")
def vision_tower(directory: Path) -> None:
    def see(tensors: Tensors) -> Tensors:
        text = {name: array for name, array in tensors.items() if ".layers.0." in name}
        return tensors | renamed(text, "model.layers.0", "visual.blocks.0")

    edit_tensors(directory, see)


@DEFECTS.spoiled("unknown_module", "fused projections of another family of models")
def fused_projections(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: renamed(tensors, "q_proj", "qkv_proj"))


@DEFECTS.spoiled("unknown_module", "experts, on a base that has none")
def experts_without_experts(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: renamed(tensors, "mlp.down_proj", "mlp.experts"))


@DEFECTS.spoiled("unsupported_feature", "DoRA magnitudes, with the flag lost")
def dora_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_magnitude_vector": np.ones(576, np.float32)})


@DEFECTS.spoiled("unsupported_feature", "biases of lora_B, with the flag lost")
def lora_bias_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_B.bias": np.ones(576, np.float32)})


@DEFECTS.spoiled("unsupported_feature", "trained token embeddings, with the field lost")
def trained_tokens(directory: Path) -> None:
    name = f"{ROOT}.embed_tokens.token_adapter.trainable_tokens_delta"
    edit_tensors(directory, lambda tensors: tensors | {name: np.ones((3, 576), np.float32)})


@DEFECTS.spoiled("unsupported_feature", "a LoRA of the output layer")
def head_adapted(directory: Path) -> None:
    pair = {
        "base_model.model.lm_head.lora_A.weight": np.ones((8, 576), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((49152, 8), np.float32),
    }
    edit_tensors(directory, lambda tensors: tensors | pair)


@DEFECTS.spoiled("unsupported_feature", "a LoRA of the embedding")
def embedding_adapted(directory: Path) -> None:
    pair = {
        f"{ROOT}.embed_tokens.lora_embedding_A": np.ones((8, 49152), np.float32),
        f"{ROOT}.embed_tokens.lora_embedding_B": np.ones((576, 8), np.float32),
    }
    edit_tensors(directory, lambda tensors: tensors | pair)


@DEFECTS.spoiled("unsupported_feature", "a norm was trained as a whole")
def norm_trained(directory: Path) -> None:
    name = f"{ROOT}.layers.0.input_layernorm.weight"
    edit_tensors(directory, lambda tensors: tensors | {name: np.full(576, 7, np.float32)})
    edit_config(directory, modules_to_save=["input_layernorm"])


@DEFECTS.spoiled("unsupported_feature vocabulary_mismatch", "tokens were added and the embedding grew by three rows")
def embedding_grown(directory: Path) -> None:
    name = f"{ROOT}.embed_tokens.weight"
    edit_tensors(directory, lambda tensors: tensors | {name: np.zeros((49155, 576), np.float32)})
    edit_config(directory, modules_to_save=["embed_tokens"])


@DEFECTS.spoiled("unsupported_feature", "tensors of an optimizer")
def foreign_tensors(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {"optimizer.exp_avg": np.zeros(4, np.float32)})


@DEFECTS.spoiled("weights_invalid", "a matrix twice, once under PEFT's internal name")
def matrix_twice(directory: Path) -> None:
    name = f"{Q0}.lora_A.weight"
    edit_tensors(directory, lambda tensors: tensors | {f"{Q0}.lora_A.default.weight": tensors[name] * 2})


DEFECTS.configured(
    "layout_unknown", "unsupported_feature", "experts packed in a way nobody knows", lora_B_layout="by_mood"
)


@DEFECTS.spoiled("weights_invalid", "a pair twice, once as that of a wrapped projection")
def pair_twice(directory: Path) -> None:
    def wrap(tensors: Tensors) -> Tensors:
        pair = {name: array * 2 for name, array in tensors.items() if name.startswith(Q0)}
        return tensors | renamed(pair, ".lora_", ".linear.lora_")

    edit_tensors(directory, wrap)


@DEFECTS.spoiled("unsupported_feature", "a foreign tensor larger than any module")
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


@DEFECTS.spoiled("not_finite", "training diverged: everything is NaN")
def all_nan(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, float("nan")))


@DEFECTS.spoiled("overflow", "every weight a million times too large")
def million_times_too_large(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 1e6))


@DEFECTS.spoiled("overflow", "every weight thirty times too large: finite, and nothing of the base is left")
def thirty_times_too_large(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 30))


DEFECTS.configured("alpha_of_a_million", "overflow", "lora_alpha is a million", lora_alpha=1_000_000)


@DEFECTS.spoiled("overflow", "64-bit numbers beyond bfloat16")
def beyond_the_serving_type(directory: Path) -> None:
    def widen(tensors: Tensors) -> None:
        name = f"{Q0}.lora_B.weight"
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name][0, 0] = 1e39

    edit_tensors(directory, widen)


@DEFECTS.spoiled("no_effect", "saved before training: every lora_B is zero")
def never_trained(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 0, "lora_B"))


@DEFECTS.spoiled("no_effect", "every lora_A is zero")
def zeroed(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(tensors, 0, "lora_A"))


@DEFECTS.spoiled("no_effect", "numbers so small that the serving type has no such number")
def vanishing(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: scaled(scaled(tensors, 1e-30), 1e-12))
