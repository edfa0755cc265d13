"""config.json and generation_config.json of the result say what the tensors and the tokenizer say."""

from __future__ import annotations

from typing import Any

import pytest

from service.export import complete
from service.export.complete import Facts
from service.export.refusal import Refused

FACTS = Facts(rows=100, hidden=8, layers=2, dtype="bfloat16", tied=False)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


def test_what_the_tensors_know_better_is_theirs() -> None:
    given = {**CONFIG, "torch_dtype": "float32", "tie_word_embeddings": True, "quantization_config": {"bits": 4}}
    settled = complete.settled({**given, "_name_or_path": "base", "auto_map": {"x": "y"}}, FACTS)
    assert settled == {**CONFIG, "vocab_size": 100, "dtype": "bfloat16", "tie_word_embeddings": False}


def test_the_parts_of_a_model_that_sees_are_settled_too() -> None:
    text = {**CONFIG, "dtype": "float32", "quantization_config": {}, "tie_word_embeddings": True}
    settled = complete.settled(
        {"model_type": "gemma3", "text_config": text, "vision_config": {"dtype": "float32"}}, FACTS
    )
    assert settled["text_config"] == {**CONFIG, "vocab_size": 100, "dtype": "bfloat16", "tie_word_embeddings": False}
    assert settled["vision_config"] == {"dtype": "bfloat16"}
    assert "vocab_size" not in settled


def test_the_given_configuration_stays_as_it_is() -> None:
    given = {**CONFIG, "text_config": {"quantization_config": {}, "hidden_size": 8}}
    complete.settled(given, FACTS)
    assert given == {**CONFIG, "text_config": {"quantization_config": {}, "hidden_size": 8}}


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 16), ("num_hidden_layers", 3)])
def test_a_configuration_of_another_size_is_refused(field: str, value: int) -> None:
    with pytest.raises(Refused):
        complete.settled({**CONFIG, field: value}, FACTS)


def test_a_stub_has_gaps_and_a_gpt2_has_none() -> None:
    assert complete.gaps({"model_type": "llama"}) == [
        "architectures",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
    ]
    assert not complete.gaps({"model_type": "gpt2", "architectures": ["X"], "n_embd": 8, "n_layer": 2, "n_head": 2})


def test_the_tokenizers_end_comes_first_and_none_is_beyond_the_vocabulary() -> None:
    assert complete.end_ids([{"eos_token_id": [2, 3]}, {"eos_token_id": 3}, {}], 7, 100) == [7, 2, 3]
    assert complete.end_ids([{"eos_token_id": [2, 300]}], None, 100) == [2]


def test_a_generation_config_is_made_where_there_is_none() -> None:
    config = {**CONFIG, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 500}
    assert complete.generation(None, config, [2]) == {"bos_token_id": 1, "eos_token_id": 2}
    given = {"_from_model_config": True, "temperature": 0.6, "eos_token_id": 2}
    assert complete.generation(given, config, [7, 2]) == {"temperature": 0.6, "eos_token_id": [7, 2]}


def test_positions_are_stretched_as_they_were_in_training() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    stretched = complete.stretched({**CONFIG, "rope_parameters": rope}, 2.0)
    assert stretched["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    assert stretched["max_position_embeddings"] == 128
    assert complete.stretched(CONFIG, 4.0)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_positions_that_are_scaled_already_are_not_stretched() -> None:
    with pytest.raises(Refused):
        complete.stretched({**CONFIG, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 2.0)


@pytest.mark.parametrize(
    ("trained", "base", "told"), [(None, None, False), (64, None, False), (128, 128, False), (128, 64, True)]
)
def test_a_longer_training_is_seen(trained: float | None, base: float | None, told: bool) -> None:
    assert (complete.stretch_problem(trained, base, CONFIG) is not None) is told
