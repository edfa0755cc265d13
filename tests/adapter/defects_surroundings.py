"""What is wrong around an adapter: its tokenizer and template, or the directory as a whole."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from adapter.spoiling import (
    CONFIG,
    Defects,
    edit_json,
)

if TYPE_CHECKING:
    from pathlib import Path

DEFECTS = Defects()

# Its tokenizer and template


@DEFECTS.spoiled("vocabulary_mismatch", "three tokens were added")
def tokens_added(directory: Path) -> None:
    added = [{"id": 49152 + number, "content": f"<tool_{number}>", "special": True} for number in range(3)]
    edit_json(directory, "tokenizer.json", lambda document: document["added_tokens"].extend(added))


@DEFECTS.spoiled("vocabulary_mismatch", "tokens that only tokenizer_config.json adds")
def tokens_added_on_the_side(directory: Path) -> None:
    added = {"49152": {"content": "<tool>", "special": True}}
    edit_json(directory, "tokenizer_config.json", lambda fields: fields.update(added_tokens_decoder=added))


@DEFECTS.spoiled("vocabulary_mismatch", "the tokenizer of another model")
def other_tokenizer(directory: Path) -> None:
    def rotate(document: dict[str, Any]) -> None:
        texts = list(document["model"]["vocab"])
        document["model"]["vocab"] = {text: number for number, text in enumerate(texts[1000:] + texts[:1000])}

    edit_json(directory, "tokenizer.json", rotate)


@DEFECTS.spoiled("vocabulary_mismatch", "an end token that is in no vocabulary")
def end_token_unknown(directory: Path) -> None:
    edit_json(directory, "tokenizer_config.json", lambda fields: fields.update({"eos_token": "<|nowhere|>"}))


@DEFECTS.spoiled("config_invalid", "tokenizer.json was cut off")
def tokenizer_cut_off(directory: Path) -> None:
    os.truncate(directory / "tokenizer.json", 100_000)


@DEFECTS.spoiled("config_invalid", "tokenizer_config.json is a list")
def tokenizer_settings_of_a_list(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text("[]")


@DEFECTS.spoiled("config_invalid", "the chat template is not Jinja")
def template_broken(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}")


@DEFECTS.spoiled("too_large", "the chat template has two megabytes")
def template_too_large(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("x" * (2 << 20))


# Directories that are something else


def _only(directory: Path, *files: str) -> None:
    for path in directory.iterdir():
        path.unlink()
    for name in files:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")


@DEFECTS.spoiled("config_missing weights_missing", "an empty directory")
def empty_directory(directory: Path) -> None:
    _only(directory)


@DEFECTS.spoiled("config_missing weights_missing", "a trainer's output directory with two checkpoints")
def output_directory(directory: Path) -> None:
    _only(directory, "README.md", f"checkpoint-12/{CONFIG}", f"checkpoint-24/{CONFIG}")
    state = {"best_model_checkpoint": "/content/outputs/checkpoint-12", "log_history": []}
    (directory / "checkpoint-24" / "trainer_state.json").write_text(json.dumps(state))


@DEFECTS.spoiled("config_missing weights_missing", "a merged model")
def merged_model(directory: Path) -> None:
    _only(directory, "config.json", "model.safetensors", "tokenizer.json")


@DEFECTS.spoiled("config_missing weights_missing", "a GGUF file")
def gguf_file(directory: Path) -> None:
    _only(directory, "mine-lora-f16.gguf")


@DEFECTS.spoiled("config_missing weights_missing", "adapters one level further down")
def one_level_too_high(directory: Path) -> None:
    _only(directory, f"german/{CONFIG}", f"french/{CONFIG}")
