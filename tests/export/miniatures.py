"""Base models of a few kilobytes, random but of every kind the conversion has to know, with a tokenizer that works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

if TYPE_CHECKING:
    from pathlib import Path

disable_progress_bar()
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|end|>", "<|start|>"]
ROWS = len(BYTES) + len(SPECIAL)
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}<|start|>"
SIZES = {"vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
ENDS = {"eos_token_id": ROWS - 2, "bos_token_id": ROWS - 1, "pad_token_id": None}
NAME = "example/miniature"


def tokenizer(*added: str, max_length: int = 128) -> PreTrainedTokenizerFast:
    """One token a byte, and the two special ones."""
    vocabulary = {text: number for number, text in enumerate(BYTES + SPECIAL)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=SPECIAL[0], bos_token=SPECIAL[1], model_max_length=max_length
    )
    made.chat_template = TEMPLATE
    made.add_tokens(list(added))
    return made


def llama(**changes: Any) -> Any:
    """Its embedding is its output layer, unless told otherwise."""
    config = LlamaConfig(**{**SIZES, **HEADS, **ENDS, "tie_word_embeddings": True, **changes})
    return _random(LlamaForCausalLM, config)


def gpt2() -> Any:
    """Matrices stored the other way round, and older names."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    return _random(GPT2LMHeadModel, GPT2Config(vocab_size=ROWS, **sizes, **ENDS))


def gpt_oss(rows: int = ROWS) -> Any:
    """Experts in stacks, [experts, in, out]; of the size of the real export for such a base."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return _random(GptOssForCausalLM, GptOssConfig(vocab_size=rows, **sizes, **heads, **experts, **ENDS))


def qwen3_moe() -> Any:
    """Experts in stacks in memory, and one by one in the files."""
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
    return _random(Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **HEADS, **ENDS, **experts))


def gemma3() -> Any:
    """A model that sees, saved under older names than its code has; of the size of the real export for such a base."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": ROWS + 8, "num_key_value_heads": 2, "head_dim": 16, **ENDS, "pad_token_id": 0}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": ROWS, "boi_token_index": ROWS + 1, "eoi_token_index": ROWS + 2}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    return _random(Gemma3ForConditionalGeneration, config)


def save(model: Any, directory: Path, made: PreTrainedTokenizerFast | None = None, **how: Any) -> Path:
    """The model as a base's directory: with a name, and with a tokenizer."""
    model.save_pretrained(directory, **how)
    (made or tokenizer()).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_name_or_path": NAME}))
    return directory


def _random(kind: Any, config: Any) -> Any:
    """The model in bfloat16, with weights so large that answers depend on every one of them."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.1)
    return model.to(torch.bfloat16).eval()
