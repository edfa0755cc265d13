from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mixtures
import numpy as np
import pytest
import smol
from safetensors.numpy import load_file, save_file
from tiny_model import BASE_ID, HIDDEN, VOCABULARY, write_adapter, write_base

from service.adapter.base import Base, find_model
from service.adapter.modules import Experts
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny base to change."""
    return write_base(tmp_path / "base")


def edit(directory: Path, name: str = "config.json", **changes: Any) -> None:
    path = directory / name
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (fields | changes).items() if value is not ...}))


def test_what_a_directory_says(smol_base: Base) -> None:
    assert smol_base.name == smol.BASE_ID
    assert smol_base.modules == smol.MODULES
    assert smol_base.vocab_size == smol.VOCABULARY
    assert smol_base.max_position_embeddings == 8192
    assert smol_base.architecture == "LlamaForCausalLM"
    assert smol_base.dtype == smol_base.serving_dtype == "bfloat16"
    assert smol_base.tie_word_embeddings
    assert smol_base.end_token_ids == {2}
    assert smol_base.chat_template == (smol_base.path / "chat_template.jinja").read_text()


def test_shards(directory: Path) -> None:
    """With an index or, as older exporters left them, without one; the same modules, another fingerprint."""
    whole = Base.read(directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(sorted(tensors)):
        file = f"model-{number + 1:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensors[name]}, directory / file)
        weight_map[name] = file
    without_index = Base.read(directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with_index = Base.read(directory)
    assert whole.modules == without_index.modules == with_index.modules
    assert without_index == with_index != whole
    for name, tensor in tensors.items():
        assert np.array_equal(with_index.read_rows(name, 1, 2), tensor[1:3])
    next(iter(directory.glob("model-00001*"))).unlink()
    with pytest.raises(ConfigurationError, match="model-00001"):
        Base.read(directory)


def test_the_name(directory: Path) -> None:
    assert Base.read(directory, "told/so").name == "told/so"
    assert Base.read(directory).name == BASE_ID
    edit(directory, _name_or_path=...)
    assert Base.read(directory).name == "base"


def test_the_fingerprint_is_of_configuration_and_headers(directory: Path) -> None:
    before = Base.read(directory)
    edit(directory, "tokenizer_config.json", padding_side="left")
    assert Base.read(directory) == before
    assert hash(Base.read(directory)) == hash(before)
    edit(directory, rope_theta=1.0)
    assert Base.read(directory) != before


def test_end_tokens_come_from_all_that_name_them(directory: Path) -> None:
    smol.write_tokenizer(directory)
    edit(directory, eos_token_id=5)
    edit(directory, "generation_config.json", eos_token_id=[6, 7])
    assert Base.read(directory).end_token_ids == {2, 5, 6, 7}


def test_a_text_model_inside_another(directory: Path) -> None:
    edit(directory, max_position_embeddings=..., text_config={"max_position_embeddings": 99, "eos_token_id": 3})
    base = Base.read(directory)
    assert base.max_position_embeddings == 99
    assert base.end_token_ids == {3}


def test_types(directory: Path) -> None:
    edit(directory, torch_dtype="float16")
    assert Base.read(directory).dtype == "float16"
    edit(directory, torch_dtype=...)
    assert Base.read(directory).dtype == "bfloat16"
    edit(directory, dtype="float32")
    assert Base.read(directory).serving_dtype == "bfloat16"


def test_gpt2_stores_its_layers_transposed(directory: Path) -> None:
    save_file(
        {"wte.weight": np.zeros((VOCABULARY, 4), np.float16), "h.0.mlp.c_fc.weight": np.zeros((4, 16), np.float16)},
        directory / "model.safetensors",
    )
    edit(directory, model_type="gpt2")
    assert Base.read(directory).modules == {"h.0.mlp.c_fc": (16, 4)}


@pytest.mark.parametrize("stored", ["stacked", "flipped", "single", "mxfp4"])
def test_experts_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    base = Base.read(mixtures.write_base(tmp_path / "base", stored))
    hidden, width = mixtures.HIDDEN, mixtures.WIDTH
    assert base.experts == {
        mixtures.EXPERTS_PATH: Experts(mixtures.EXPERTS, (2 * width, hidden), (hidden, width)),
    }
    names = base.weights_of(f"{mixtures.EXPERTS_PATH}.gate_up_proj")
    assert set(names) <= set(base.tensors)
    assert len(names) == (2 * mixtures.EXPERTS if stored == "single" else 1)


MODULE = "model.layers.0.mlp.up_proj"


def bitsandbytes() -> tuple[dict[str, Any], dict[str, Any]]:
    state = np.frombuffer(json.dumps({"quant_type": "nf4", "shape": [48, HIDDEN]}).encode(), np.uint8)
    tensors = {
        f"{MODULE}.weight": np.zeros((48 * HIDDEN // 2, 1), np.uint8),
        f"{MODULE}.weight.quant_state.bitsandbytes__nf4": state,
        f"{MODULE}.weight.absmax": np.zeros(12, np.uint8),
    }
    return tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}


def gptq() -> tuple[dict[str, Any], dict[str, Any]]:
    return {f"{MODULE}.qweight": np.zeros((HIDDEN // 8, 48), np.int32)}, {"quant_method": "gptq", "bits": 4}


def awq() -> tuple[dict[str, Any], dict[str, Any]]:
    return {f"{MODULE}.qweight": np.zeros((HIDDEN, 48 // 8), np.int32)}, {"quant_method": "awq", "bits": 4}


def packed_integers() -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {
        f"{MODULE}.weight_packed": np.zeros((48, HIDDEN // 8), np.int32),
        f"{MODULE}.weight_shape": np.array([48, HIDDEN]),
    }
    return tensors, {"quant_method": "compressed-tensors"}


def packed_floats() -> tuple[dict[str, Any], dict[str, Any]]:
    return {f"{MODULE}.weight_packed": np.zeros((48, HIDDEN // 2), np.uint8)}, {"quant_method": "compressed-tensors"}


def eight_bit() -> tuple[dict[str, Any], dict[str, Any]]:
    return {f"{MODULE}.weight": np.zeros((48, HIDDEN), np.int8)}, {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize("form", [bitsandbytes, gptq, awq, packed_integers, packed_floats, eight_bit])
def test_a_quantised_base_has_the_shapes_of_its_original(directory: Path, form: Any) -> None:
    tensors, settings = form()
    tensors["model.embed_tokens.weight"] = np.zeros((VOCABULARY, HIDDEN), np.float16)
    save_file(tensors, directory / "model.safetensors")
    edit(directory, quantization_config=settings)
    assert Base.read(directory).modules == {MODULE: (48, HIDDEN)}


def test_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is a snapshot that is already here, with its links into the cache; nothing is asked of the network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    repository = tmp_path / "hub" / "models--example--tiny"
    real = write_base(repository / "blobs")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(file)
    with pytest.raises(ConfigurationError, match="hf download example/tiny"):
        find_model("example/tiny")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_model("example/tiny") == (snapshot, "example/tiny")
    assert Base.open("example/tiny").name == "example/tiny"
    assert Base.open("example/tiny", "other").name == "other"
    assert find_model(str(real)) == (real, None)


def test_no_model(directory: Path, tmp_path: Path) -> None:
    for path in ("no/such/directory/at/all", "../nowhere"):
        with pytest.raises(ConfigurationError, match="no directory"):
            find_model(path)
    with pytest.raises(ConfigurationError, match="LoRA adapter"):
        Base.read(write_adapter(tmp_path / "adapter"))
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ConfigurationError, match="not sound"):
        Base.read(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"no model\.safetensors"):
        Base.read(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="can't be read"):
        Base.read(directory)


@pytest.mark.parametrize("weight_map", [{}, [], {"a": "../elsewhere.safetensors"}, {"a": 1}])
def test_an_index_that_leads_nowhere(directory: Path, weight_map: Any) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigurationError, match="index"):
        Base.read(directory)
