from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import mixtures
import ml_dtypes
import numpy as np
import pytest
import smol
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_model import HIDDEN, RANK, write_adapter

from service.adapter.base import Base
from service.adapter.inspection import inspect
from service.adapter.layout import CONTENT_FILES
from service.adapter.serving_copy import ServingCopy, write_serving_copy
from service.adapter.weights import SERVING_TYPES
from service.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter of the tiny base."""
    return write_adapter(tmp_path / "adapter")


def configure(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def serve(source: Path, base: Base, dtype: str = "bfloat16") -> tuple[Path, ServingCopy]:
    target = source.parent / f"serving {dtype}"
    report = inspect(source, base, max_rank=None, dtype=dtype)
    return target, write_serving_copy(source, target, base, report, dtype)


def served_config(target: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((target / CONFIG).read_text())
    return fields


@pytest.mark.parametrize("dtype", sorted(SERVING_TYPES))
def test_the_weights_in_the_serving_type(adapter: Path, tiny_base: Base, dtype: str) -> None:
    numbers = np.random.default_rng(0)
    tensors = {
        name: numbers.normal(0, 0.01, t.shape).astype(np.float32) for name, t in load_file(adapter / WEIGHTS).items()
    }
    save_file(tensors, adapter / WEIGHTS)
    target, copy = serve(adapter, tiny_base, dtype)
    written = load_file(target / WEIGHTS)
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert written[name].dtype == SERVING_TYPES[dtype]
        assert np.array_equal(written[name], tensor.astype(SERVING_TYPES[dtype]))
    with safe_open(target / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert copy == ServingCopy(2, (), (target / WEIGHTS).stat().st_size)
    assert {path.name for path in target.iterdir()} == {WEIGHTS, CONFIG}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in target.iterdir())


def test_the_configuration_keeps_its_meaning_and_loses_the_rest(adapter: Path, tiny_base: Base) -> None:
    configure(
        adapter, use_rslora=True, target_modules=".*(q|v)_proj", auto_mapping={"x": 1}, lora_dropout=0.1, extra="x"
    )
    target, _ = serve(adapter, tiny_base)
    fields = served_config(target)
    assert (fields["r"], fields["lora_alpha"], fields["use_rslora"]) == (RANK, 2 * RANK, True)
    assert fields["target_modules"] == ["q_proj", "v_proj"]
    assert fields["rank_pattern"] == fields["alpha_pattern"] == {}
    assert not {"auto_mapping", "extra"} & set(fields)


def test_patterns_name_modules_in_full(adapter: Path, tiny_base: Base) -> None:
    """The engine is given no expression that a stranger wrote, and finds the same ranks and alphas."""
    configure(adapter, r=2 * RANK, rank_pattern={r".*\.\w_proj": RANK}, alpha_pattern={"q_proj|k_proj": 5})
    target, _ = serve(adapter, tiny_base)
    fields = served_config(target)
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
    assert fields["rank_pattern"] == {f"^{re.escape(module)}": RANK for module in modules}
    assert fields["alpha_pattern"] == {f"^{re.escape(modules[0])}": 5}
    assert fields["r"] == 2 * RANK
    assert [_as_vllm_finds(fields["alpha_pattern"], module) for module in modules] == [5, None]


def _as_vllm_finds(table: dict[str, int], module: str) -> int | None:
    return next((value for key, value in table.items() if re.match(rf"(.*\.)?({key})$", module)), None)


def test_names_as_the_base_has_them(adapter: Path, tiny_base: Base) -> None:
    tensors = load_file(adapter / WEIGHTS)
    raw = {
        name.replace("model.layers", "model.language_model.layers").replace(".weight", ".default.weight"): tensor
        for name, tensor in tensors.items()
    }
    save_file(raw, adapter / WEIGHTS)
    configure(adapter, alpha_pattern={"language_model.layers.0.self_attn.q_proj": 7})
    target, _ = serve(adapter, tiny_base)
    written = load_file(target / WEIGHTS)
    assert set(written) == set(tensors)
    assert all(np.array_equal(written[name], tensor) for name, tensor in tensors.items())
    assert served_config(target)["alpha_pattern"] == {r"^model\.layers\.0\.self_attn\.q_proj": 7}


@pytest.mark.parametrize("part", "AB")
def test_pairs_that_come_to_nothing_are_left_out(adapter: Path, tiny_base: Base, part: str) -> None:
    """Zero, and too small for float16: the engine would count fewer modules with an effect than the file has."""
    tensors = load_file(adapter / WEIGHTS)
    tensors[f"{Q}.lora_{part}.weight"] *= ml_dtypes.bfloat16(1e-12)
    save_file(tensors, adapter / WEIGHTS)
    target, copy = serve(adapter, tiny_base, "float16")
    assert copy.modules == 1
    assert not any("q_proj" in name for name in load_file(target / WEIGHTS))
    assert serve(adapter, tiny_base, "bfloat16")[1].modules == 2


def test_copies_of_the_bases_tensors_stay_behind(adapter: Path, tiny_base: Base) -> None:
    own = tiny_base.read_rows("model.embed_tokens.weight", 0, tiny_base.vocab_size)
    name = "base_model.model.model.embed_tokens.weight"
    save_file(load_file(adapter / WEIGHTS) | {name: own}, adapter / WEIGHTS)
    configure(adapter, modules_to_save=["embed_tokens"])
    target, _ = serve(adapter, tiny_base)
    assert name not in load_file(target / WEIGHTS)
    assert "modules_to_save" not in served_config(target)


@pytest.mark.parametrize("grouped", [True, False])
def test_experts_are_packed_rank_by_rank(tmp_path: Path, grouped: bool) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base"))
    target, copy = serve(mixtures.write_adapter(tmp_path / "adapter", grouped=grouped), base, "float32")
    written = load_file(target / WEIGHTS)
    for name, pairs in mixtures.expert_pairs().items():
        a, b = mixtures.packed(pairs, grouped=False)
        prefix = f"base_model.model.model.layers.0.mlp.{name}"
        assert np.array_equal(written[f"{prefix}.lora_A.weight"], a)
        assert np.array_equal(written[f"{prefix}.lora_B.weight"], b)
    assert copy.modules == 1, "the engine has one module for both matrices of a layer's experts"
    assert served_config(target)["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


def test_its_own_template_and_nothing_more(smol_base: Base, tmp_path: Path) -> None:
    source = smol.write_adapter(tmp_path / "adapter", smol_base.path)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}<|endoftext|>")
    target, copy = serve(source, smol_base)
    assert copy.stop_token_ids == (0,)
    assert (target / "chat_template.jinja").read_text() == "{{ messages[0].content }}<|endoftext|>"
    assert {path.name for path in target.iterdir()} == {WEIGHTS, CONFIG, "chat_template.jinja"}


def test_its_own_tokenizer_is_made_whole(smol_base: Base, tmp_path: Path) -> None:
    """An adapter that only brings settings is served with the base's vocabulary under them."""
    source = smol.write_adapter(tmp_path / "adapter", smol_base.path)
    (source / "tokenizer.json").unlink()
    settings = {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "training_args.bin").write_bytes(b"\x80")
    target, copy = serve(source, smol_base)
    assert copy.stop_token_ids == (0,)
    assert json.loads((target / "tokenizer_config.json").read_text()) == settings
    assert (target / "tokenizer.json").read_bytes() == (smol_base.path / "tokenizer.json").read_bytes()
    assert {path.name for path in target.iterdir()} <= set(CONTENT_FILES)


def test_what_was_not_accepted_is_not_written(adapter: Path, tiny_base: Base) -> None:
    report = inspect(adapter, tiny_base, max_rank=RANK - 1)
    with pytest.raises(Rejected):
        write_serving_copy(adapter, adapter.parent / "serving", tiny_base, report, "bfloat16")
    assert not (adapter.parent / "serving").exists()


def test_the_source_is_not_touched(adapter: Path, tiny_base: Base) -> None:
    before = {path.name: (path.read_bytes(), path.stat()) for path in adapter.iterdir()}
    serve(adapter, tiny_base)
    after = {path.name: (path.read_bytes(), path.stat()) for path in adapter.iterdir()}
    assert {name: data for name, (data, _) in before.items()} == {name: data for name, (data, _) in after.items()}
    assert all(before[name][1].st_mtime_ns == stat.st_mtime_ns for name, (_, stat) in after.items())


def test_a_judged_serving_copy_is_sound_and_computes_the_same(adapter: Path, tiny_base: Base) -> None:
    configure(adapter, alpha_pattern={"q_proj": 64})
    target, _ = serve(adapter, tiny_base)
    one, other = (inspect(directory, tiny_base, max_rank=None) for directory in (adapter, target))
    assert other.accepted
    assert (one.modules, one.strength, one.strongest) == (other.modules, other.strength, other.strongest)
    assert load_file(target / WEIGHTS)[f"{Q}.lora_A.weight"].shape == (RANK, HIDDEN)
