"""What is accepted, with which words, and what is mended on the way. What is refused is in test_each_defect.py."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import mixtures
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_model import HIDDEN, RANK, VOCABULARY, write_adapter, write_base

from service.adapter.base import Base
from service.adapter.findings import LISTED, gather
from service.adapter.inspection import inspect
from service.adapter.spec import Problem, ProblemCode, Report, codes

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter of the tiny base."""
    return write_adapter(tmp_path / "adapter")


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(directory: Path, old: str, new: str) -> None:
    tensors = load_file(directory / WEIGHTS)
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, directory / WEIGHTS)


def add(directory: Path, **tensors: Any) -> None:
    added = {f"base_model.model.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}
    save_file(load_file(directory / WEIGHTS) | added, directory / WEIGHTS)


def accepted(report: Report, *warnings: str) -> bool:
    """Whether these are all the warnings, but for the two that the tests' own way of writing files brings about."""
    assert codes(report.problems) == []
    return set(codes(report.warnings)) - {"no_tokenizer", "permissions"} == set(warnings)


def test_a_sound_one(adapter: Path, tiny_base: Base) -> None:
    report = inspect(adapter, tiny_base, max_rank=RANK)
    assert accepted(report)
    assert report.modules == {"model.layers.0.self_attn.q_proj": RANK, "model.layers.0.self_attn.v_proj": RANK}
    assert report.rank == RANK
    assert report.dtype == "BF16"
    assert report.bytes == (adapter / WEIGHTS).stat().st_size
    assert report.base == "example/tiny-base"
    assert report.strength
    assert report.strongest in report.modules
    assert {old: new for old, new in report.repairs.names.items() if old != new} == {}


def test_headers_alone(adapter: Path, tiny_base: Base) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: np.full_like(tensor, np.nan) for name, tensor in tensors.items()}, adapter / WEIGHTS)
    assert inspect(adapter, tiny_base, max_rank=None, numbers=False).strength is None
    assert accepted(inspect(adapter, tiny_base, max_rank=None, numbers=False))
    assert codes(inspect(adapter, tiny_base, max_rank=None).problems) == ["not_finite"]


def test_everything_at_once_in_the_contracts_order(adapter: Path, tiny_base: Base) -> None:
    configure(adapter, lora_alpha="16", use_dora=True, r=9, base_model_name_or_path="other/model")
    add(adapter, model__layers__7__self_attn__q_proj__lora_A__weight=np.full((9, HIDDEN), np.inf, np.float32))
    (adapter / "chat_template.jinja").write_text("{% endfor %}")
    found = codes(inspect(adapter, tiny_base, max_rank=8).problems)
    order = [str(code) for code in ProblemCode]
    assert found == sorted(found, key=order.index)
    assert set(found) == {
        "config_invalid",
        "unsupported_feature",
        "rank_too_large",
        "rank_mismatch",
        "unknown_module",
        "base_mismatch",
        "not_finite",
    }


@pytest.mark.parametrize(("old", "new"), [(".weight", ".default.weight"), ("base_model.model.", "")])
def test_names_as_a_raw_state_has_them(adapter: Path, tiny_base: Base, old: str, new: str) -> None:
    original = set(load_file(adapter / WEIGHTS))
    rename(adapter, old, new)
    report = inspect(adapter, tiny_base, max_rank=None)
    assert accepted(report, "names_repaired")
    assert set(report.repairs.names.values()) == original


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.language_model.layers", "model.layers"),
        ("language_model.model.layers", "model.layers"),
        ("model.layers", "model.language_model.layers"),
        ("model.layers", "language_model.model.layers"),
        ("model.language_model.layers", "language_model.model.layers"),
        ("layers", "model.layers"),
    ],
)
def test_the_wrapper_of_a_vision_model(adapter: Path, tmp_path: Path, theirs: str, ours: str) -> None:
    """The same text model inside another wrapper: its layers are found where the base has them."""
    directory = write_base(tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    wrapped = {name.replace("model.layers", ours): array for name, array in tensors.items()}
    save_file(wrapped, directory / "model.safetensors")
    rename(adapter, "model.layers", theirs)
    report = inspect(adapter, Base.read(directory), max_rank=None)
    assert accepted(report, "names_repaired")
    assert all(module.startswith(ours) for module in report.modules)
    assert all(served.startswith(f"base_model.model.{ours}.0.") for served in report.repairs.names.values())


def test_a_prefix_that_could_be_two(adapter: Path, tmp_path: Path) -> None:
    """Two text models in one base: nobody can say which was meant."""
    directory = write_base(tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    layers = {name: array for name, array in tensors.items() if "layers" in name}
    both = {f"{prefix}{name}": array for prefix in ("language_model.", "model.") for name, array in layers.items()}
    embedding = "model.embed_tokens.weight"
    save_file(both | {embedding: tensors[embedding]}, directory / "model.safetensors")
    assert codes(inspect(adapter, Base.read(directory), max_rank=None).problems) == ["unknown_module"]


def test_clipped_projections(adapter: Path, tiny_base: Base) -> None:
    rename(adapter, ".lora_", ".linear.lora_")
    assert accepted(inspect(adapter, tiny_base, max_rank=None), "names_repaired")


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("example/TINY-base", None),
        ("unsloth/tiny-base", None),
        ("unsloth/tiny-base-bnb-4bit", "base_quantised"),
        ("/content/tiny", "base_unverified"),
        ("", "base_unverified"),
        (None, "base_unverified"),
    ],
)
def test_what_its_base_is_called(adapter: Path, tiny_base: Base, name: str | None, warning: str | None) -> None:
    configure(adapter, base_model_name_or_path=name)
    assert accepted(inspect(adapter, tiny_base, max_rank=None), *([warning] if warning else []))


def test_another_base_by_consent(adapter: Path, tiny_base: Base) -> None:
    configure(adapter, base_model_name_or_path="example/other")
    assert codes(inspect(adapter, tiny_base, max_rank=None).problems) == ["base_mismatch"]
    assert accepted(inspect(adapter, tiny_base, max_rank=None, allow_base_mismatch=True), "base_unverified")


def test_float32(adapter: Path, tiny_base: Base) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, adapter / WEIGHTS)
    assert accepted(inspect(adapter, tiny_base, max_rank=None), "weights_float32")


def test_what_lies_beside_it(adapter: Path, tiny_base: Base) -> None:
    (adapter / WEIGHTS).chmod(0o600)
    for name in ("README.md", "training_args.bin", "optimizer.pt", "mtp_head.safetensors", "config.json"):
        (adapter / name).write_bytes(b"\x80\x04.")
    report = inspect(adapter, tiny_base, max_rank=None)
    assert accepted(report, "files_ignored")
    assert "permissions" in codes(report.warnings)
    (adapter / WEIGHTS).chmod(0o640)
    assert "permissions" not in codes(inspect(adapter, tiny_base, max_rank=None).warnings)
    (ignored,) = (problem.message for problem in report.warnings if problem.code == "files_ignored")
    assert "training_args.bin" in ignored
    assert "README" not in ignored


def test_copies_of_the_bases_own_tensors_are_left_out(adapter: Path, tiny_base: Base) -> None:
    """modules_to_save of an embedding that training left as it was, tied output layer included, in 32 bit."""
    own = tiny_base.read_rows("model.embed_tokens.weight", 0, VOCABULARY).astype(np.float32) * (1 + 1e-4)
    add(adapter, model__embed_tokens__weight=own, lm_head__weight=own)
    configure(adapter, modules_to_save=["embed_tokens", "model.embed_tokens", "lm_head"], ensure_weight_tying=True)
    report = inspect(adapter, tiny_base, max_rank=None)
    assert accepted(report, "modules_dropped", "weights_float32")
    assert not any("embed" in name or "lm_head" in name for name in report.repairs.names)


def test_one_changed_row_is_training(adapter: Path, tiny_base: Base) -> None:
    own = tiny_base.read_rows("model.embed_tokens.weight", 0, VOCABULARY)
    own[-1, -1] += ml_dtypes.bfloat16(0.01)
    add(adapter, model__embed_tokens__weight=own)
    assert codes(inspect(adapter, tiny_base, max_rank=None).problems) == ["unsupported_feature"]


def test_a_part_of_what_was_trained(adapter: Path, tiny_base: Base) -> None:
    configure(adapter, target_modules=["q_proj", "self_attn.v_proj", "k_proj", "of_no_base"])
    report = inspect(adapter, tiny_base, max_rank=None)
    assert accepted(report, "partial")
    (missing,) = (problem.where for problem in report.warnings if problem.code == "partial")
    assert missing == "model.layers.0.self_attn.k_proj"
    configure(adapter, exclude_modules=["k_proj"], layers_to_transform=0)
    assert accepted(inspect(adapter, tiny_base, max_rank=None))


@pytest.mark.parametrize("changes", [{"target_modules": ["of_no_base"]}, {"layers_to_transform": [5]}])
def test_targets_the_base_has_not(adapter: Path, tiny_base: Base, changes: dict[str, Any]) -> None:
    configure(adapter, **changes)
    assert codes(inspect(adapter, tiny_base, max_rank=None).problems) == ["unknown_module"]


def test_ranks_and_alphas_of_single_modules(adapter: Path, tiny_base: Base) -> None:
    """Strength follows alpha/r of the module, and alpha/√r when it is rank-stabilised."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "q_proj" in name}, adapter / WEIGHTS)
    configure(adapter, target_modules=["q_proj"])
    one = inspect(adapter, tiny_base, max_rank=None).strength
    assert one
    configure(adapter, r=16, rank_pattern={"q_proj": RANK}, alpha_pattern={r".*\.q_proj": 6 * RANK})
    assert inspect(adapter, tiny_base, max_rank=None).strength == pytest.approx(3 * one)
    configure(adapter, use_rslora=True)
    assert inspect(adapter, tiny_base, max_rank=None).strength == pytest.approx(3 * one * RANK**0.5)


@pytest.mark.parametrize("stored", ["stacked", "single", "mxfp4"])
def test_fused_experts(tmp_path: Path, stored: str) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base", stored))
    report = inspect(mixtures.write_adapter(tmp_path / "adapter"), base, max_rank=None)
    assert accepted(report, "weights_float32")
    assert report.modules == {
        f"{mixtures.EXPERTS_PATH}.gate_up_proj": mixtures.RANK,
        f"{mixtures.EXPERTS_PATH}.down_proj": mixtures.RANK,
    }
    assert report.repairs.grouped == {}
    assert (report.strength is None) == (stored == "mxfp4")


def test_experts_as_older_exporters_packed_them(tmp_path: Path) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base"))
    new = inspect(mixtures.write_adapter(tmp_path / "new"), base, max_rank=None)
    old = inspect(mixtures.write_adapter(tmp_path / "old", grouped=True), base, max_rank=None)
    assert accepted(old, "weights_float32", "layout_repaired")
    assert set(old.repairs.grouped.values()) == {mixtures.EXPERTS}
    assert all("lora_B" in name for name in old.repairs.grouped)
    assert old.strength == pytest.approx(new.strength)
    configure(tmp_path / "old", auto_mapping=None)
    assert inspect(tmp_path / "old", base, max_rank=None).repairs.grouped == {}, "only Unsloth packed them so"


def test_experts_of_another_number(tmp_path: Path) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base"))
    directory = mixtures.write_adapter(tmp_path / "adapter", r=3)
    assert codes(inspect(directory, base, max_rank=None).problems) == ["rank_mismatch"]


def test_which_checkpoint_was_meant(tmp_path: Path, tiny_base: Base) -> None:
    for step in (5, 40, 300):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    (remedy,) = (p.remedy for p in inspect(tmp_path, tiny_base, max_rank=None).problems if p.code == "config_missing")
    assert "checkpoint-300 is the newest" in remedy
    state = {"best_model_checkpoint": "outputs\\run/checkpoint-40/"}
    (tmp_path / "checkpoint-300" / "trainer_state.json").write_text(json.dumps(state))
    (remedy,) = (p.remedy for p in inspect(tmp_path, tiny_base, max_rank=None).problems if p.code == "config_missing")
    assert "checkpoint-40 is the best" in remedy
    assert "checkpoint-300 the newest" in remedy


def test_pickles_are_never_opened(adapter: Path, tiny_base: Base) -> None:
    """A pipe in the place of a pickle would wait for ever for its writer."""
    os.mkfifo(adapter / "adapter_model.bin")
    os.mkfifo(adapter / "optimizer.pt")
    assert accepted(inspect(adapter, tiny_base, max_rank=None), "files_ignored")


def test_no_directory(tmp_path: Path, tiny_base: Base) -> None:
    assert codes(inspect(tmp_path / "nothing", tiny_base, max_rank=None).problems) == ["path_forbidden"]


@given(
    st.sampled_from(["adapter_config.json", WEIGHTS]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_any_spoiled_bytes_are_judged(
    tiny_base: Base, tmp_path: Path, name: str, spoils: list[tuple[int, int]]
) -> None:
    """Whatever is in the files, the answer is a report."""
    directory = write_adapter(tmp_path / "adapter")
    data = bytearray((directory / name).read_bytes())
    for place, value in spoils:
        data[place % len(data)] = value
    (directory / name).write_bytes(data)
    report = inspect(directory, tiny_base, max_rank=64)
    json.dumps(report.as_dict()).encode()
    assert report.accepted == (not report.problems)


scalars = st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=8)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=8), scalars, max_size=3)
FIELDS = [
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "bias",
    "init_lora_weights",
    "layers_to_transform",
    "base_model_name_or_path",
    "task_type",
    "auto_mapping",
    "target_parameters",
    "lora_B_layout",
]


@given(st.dictionaries(st.sampled_from(FIELDS), values, min_size=1))
def test_any_configuration_is_judged(tiny_base: Base, tmp_path: Path, changes: dict[str, Any]) -> None:
    directory = write_adapter(tmp_path / "adapter")
    configure(directory, **changes)
    report = inspect(directory, tiny_base, max_rank=64)
    json.dumps(report.as_dict()).encode()


def test_a_report_has_an_end() -> None:
    problems = [Problem(ProblemCode.UNKNOWN_MODULE, f"{number}", str(number), "") for number in range(3 * LISTED)]
    gathered = gather(problems)
    assert len(gathered) == LISTED
    assert "200 more problems" in gathered[-1].message


def test_alike_is_said_once() -> None:
    places = [f"model.layers.{layer}.mlp.up_proj" for layer in range(3)]
    (gathered,) = gather(Problem(ProblemCode.PAIR_MISSING, "Missing.", place, "Save it.") for place in places)
    assert gathered.where == "model.layers.*.mlp.up_proj"
    assert gathered.message == "Missing. (3 alike)"


@pytest.mark.parametrize("name", ["tiny_gemma3", "tiny_gptoss"])
def test_exports_of_other_families_on_their_own_bases(exports: Path, tmp_path: Path, name: str) -> None:
    """A vision model's towers, and fused experts: a base with just the modules that were trained takes all of them."""
    base = Base.read(_own_base(tmp_path / "base", exports / name))
    report = inspect(exports / name, base, max_rank=8)
    assert report.accepted
    fused = {f"{path}.{matrix}" for path in base.experts for matrix in ("gate_up_proj", "down_proj")}
    assert report.modules == dict.fromkeys({*base.modules, *fused}, 8)


def _own_base(directory: Path, adapter: Path) -> Path:
    """A base made of the adapter's own shapes."""
    write_base(directory)
    tensors = load_file(adapter / WEIGHTS)
    weights = {"model.embed_tokens.weight": np.ones((49152, 64), np.float16)}
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            shape = (tensors[name.replace("lora_A", "lora_B")].shape[0], a.shape[1])
            if module.endswith((".experts", ".experts.base_layer")):
                matrix = "gate_up_proj" if module.endswith("base_layer") else "down_proj"
                weights[f"{module.removesuffix('.base_layer')}.{matrix}"] = np.ones((4, *shape), np.float16)
            else:
                weights[f"{module}.weight"] = np.ones(shape, np.float16)
    save_file(weights, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    return directory
