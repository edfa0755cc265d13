from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapter.tensor_names import ROOT, Part, TensorName, common_pattern, parse_name

paths = st.lists(st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True), min_size=1, max_size=6).map(".".join)


@given(paths, st.sampled_from([Part.A, Part.B]), st.sampled_from(["", ".default", ".my_adapter"]), st.booleans())
def test_pairs(path: str, part: Part, adapter: str, rooted: bool) -> None:
    name = parse_name(f"{ROOT if rooted else ''}{path}.{part.value}{adapter}.weight")
    assert name == TensorName(part, path)


@pytest.mark.parametrize(
    ("name", "part", "module"),
    [
        ("model.q_proj.lora_magnitude_vector", Part.MAGNITUDE, "model.q_proj"),
        ("model.q_proj.lora_magnitude_vector.default.weight", Part.MAGNITUDE, "model.q_proj"),
        ("model.q_proj.lora_B.bias", Part.BIAS, "model.q_proj"),
        ("model.q_proj.lora_B.default.bias", Part.BIAS, "model.q_proj"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", Part.TOKENS, "model.embed_tokens"),
        ("model.embed_tokens.lora_embedding_A", Part.EMBEDDING, "model.embed_tokens"),
        ("model.embed_tokens.lora_embedding_B.default", Part.EMBEDDING, "model.embed_tokens"),
        ("model.embed_tokens.weight", Part.FULL, "model.embed_tokens.weight"),
        ("model.embed_tokens.base_layer.weight", Part.FULL, "model.embed_tokens.weight"),
        ("lm_head.modules_to_save.default.weight", Part.FULL, "lm_head.weight"),
        ("lm_head.original_module.weight", Part.FULL, "lm_head.weight"),
        ("model.q_proj.bias", Part.FULL, "model.q_proj.bias"),
        ("model.q_proj.lora_C.weight", Part.FOREIGN, "model.q_proj.lora_C.weight"),
        ("model.q_proj.lora_diag", Part.FOREIGN, "model.q_proj.lora_diag"),
        ("optimizer.exp_avg", Part.FOREIGN, "optimizer.exp_avg"),
    ],
)
def test_relatives(name: str, part: Part, module: str) -> None:
    assert parse_name(f"{ROOT}{name}") == TensorName(part, module)


@given(st.text())
def test_any_text_is_taken_apart(name: str) -> None:
    assert parse_name(name).part in Part


def test_common_pattern() -> None:
    assert common_pattern(["a.0.q", "a.1.q"]) == "a.*.q"
    assert common_pattern(["a.0.q", "a.1.k"]) == "a.*.*"
    assert common_pattern(["a.b.c.d", "a.b.e"]) == "a.b.*"
    assert common_pattern(["a"]) == "a"
