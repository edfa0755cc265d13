"""Making what people bring: sources of every kind, and what happens to them on the way."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import miniatures
import numpy as np
import torch
import trained
from miniatures import ROWS
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL = "model.safetensors"
KINDS: dict[str, Callable[[], Any]] = {
    "llama": miniatures.llama,
    "untied": lambda: miniatures.llama(tie_word_embeddings=False),
    "biased": lambda: miniatures.llama(attention_bias=True),
    "wide": lambda: miniatures.llama(hidden_size=40),
    "gpt2": miniatures.gpt2,
    "gpt_oss": miniatures.gpt_oss,
    "qwen3_moe": miniatures.qwen3_moe,
    "gemma3": miniatures.gemma3,
}


@dataclass(frozen=True, slots=True)
class Room:
    """Directories of one session: the bases, made once, and a fresh one for each case."""

    root: Path
    exports: Path | None = None

    def base(self, kind: str = "llama") -> Path:
        return _base(self.root / "bases" / kind, kind)

    def new(self, name: str = "source") -> Path:
        return self.root / f"{len(list(self.root.iterdir()))}-{name}"


@cache
def _base(directory: Path, kind: str) -> Path:
    parts = {"max_shard_size": "20KB"} if kind == "untied" else {}
    return miniatures.save(KINDS[kind](), directory, **parts)


@dataclass(frozen=True, slots=True)
class Brought:
    """A source, and how it is converted."""

    source: Path
    base: Path | None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """A line of the table."""

    story: str
    bring: Callable[[Room], Brought]


def adapter(kind: str = "llama", **fields: Any) -> Callable[[Room], Brought]:
    return lambda room: Brought(trained.adapter(room.base(kind), room.new(), **fields), room.base(kind))


def grown(**fields: Any) -> Callable[[Room], Brought]:
    def bring(room: Room) -> Brought:
        source = trained.adapter(room.base(), room.new(), rows=ROWS + 3, **fields)
        miniatures.tokenizer("<a>", "<b>", "<c>").save_pretrained(source)
        return Brought(source, room.base())

    return bring


def edited(edit: Callable[[Path], None], **fields: Any) -> Callable[[Room], Brought]:
    """An adapter to which something happened."""

    def bring(room: Room) -> Brought:
        source = trained.adapter(room.base(), room.new(), **fields)
        edit(source)
        return Brought(source, room.base())

    return bring


def merged(edit: Callable[[Path], None], *, base: bool, **options: Any) -> Callable[[Room], Brought]:
    """A merged model to which something happened, with or without its base at hand."""

    def bring(room: Room) -> Brought:
        source = trained.merged(room.base(), room.new(), target_modules="all-linear")
        edit(source)
        return Brought(source, room.base() if base else None, options)

    return bring


def whole(source: Path) -> None:
    """Nothing happened."""


def with_options(**options: Any) -> Callable[[Room], Brought]:
    return lambda room: Brought(trained.adapter(room.base(), room.new()), room.base(), options)


def remove(*names: str) -> Callable[[Path], None]:
    def edit(source: Path) -> None:
        for name in names:
            (source / name).unlink()

    return edit


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def set_fields(file: str, **fields: Any) -> Callable[[Path], None]:
    """Set fields of a JSON file; None takes one away."""

    def edit(source: Path) -> None:
        content = json.loads((source / file).read_text()) | fields
        (source / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def only(file: str, **fields: Any) -> Callable[[Path], None]:
    return lambda source: (source / file).write_text(json.dumps(fields)) and None


def numbers(file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    return lambda source: save_file(change(load_file(source / file)), source / file, metadata={"format": "pt"})


def as_pickle(name: str, target: str) -> Callable[[Path], None]:
    def edit(source: Path) -> None:
        torch.save(to_torch(load_file(source / name)), source / target)
        (source / name).unlink()

    return edit


def to_torch(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    wide = {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}
    return {name: tensor.to(torch_type(tensors[name])) for name, tensor in wide.items()}


def torch_type(array: Any) -> torch.dtype:
    return torch.bfloat16 if array.dtype.name == "bfloat16" else torch.float32


def as_pickled_shards(source: Path) -> None:
    tensors = to_torch(load_file(source / MODEL))
    names = sorted(tensors)
    halves = (names[::2], names[1::2])
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        torch.save({name: tensors[name] for name in half}, source / file)
    index = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (source / MODEL).unlink()


def as_shards(source: Path, *, index: bool = False, keep: int = 2) -> None:
    """Two files, without an index or with one that is wrong about everything; `keep` of them are left."""
    tensors = load_file(source / MODEL)
    names = sorted(tensors)
    for number, half in enumerate((names[::2], names[1::2]), 1):
        if number <= keep:
            save_file({name: tensors[name] for name in half}, source / f"model-0000{number}-of-00002.safetensors")
    if index:
        wrong = {"metadata": {"total_size": 1}, "weight_map": {names[1]: "model-00001-of-00002.safetensors"}}
        (source / f"{MODEL}.index.json").write_text(json.dumps(wrong))
    (source / MODEL).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda source: (source / name).write_bytes((source / name).read_bytes()[:-100]) and None


def wide(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def poisoned(tensors: dict[str, Any]) -> dict[str, Any]:
    name = max(tensors)
    broken = tensors[name].copy()
    broken.reshape(-1)[0] = np.nan
    return {**tensors, name: broken}


def in_four_bits(source: Path) -> None:
    tensors = load_file(source / MODEL)
    name = "model.layers.0.mlp.down_proj.weight"
    packed = np.zeros((tensors[name].size // 2, 1), np.uint8)
    save_file({**tensors, name: packed, f"{name}.absmax": np.ones(8, np.float32)}, source / MODEL)
    set_fields("config.json", quantization_config={"quant_method": "bitsandbytes"})(source)


def nothing_merged(room: Room) -> Brought:
    shutil.copytree(room.base(), source := room.new())
    return Brought(source, room.base())


def merged_with_tokens(room: Room) -> Brought:
    """A merged model with three tokens more, saved without its tokenizer."""
    model = trained.train(room.base(), rows=ROWS + 3).merge_and_unload()
    model.save_pretrained(source := room.new())
    return Brought(source, room.base())


def checkpoints(room: Room) -> Brought:
    source = room.new()
    for step in (5, 10, 20):
        trained.adapter(room.base(), source / f"checkpoint-{step}", r=step)
    state = {"best_model_checkpoint": "outputs/checkpoint-10"}
    (source / "checkpoint-20" / "trainer_state.json").write_text(json.dumps(state))
    (source / "checkpoint-20" / "training_args.bin").write_bytes(pickle.dumps("never opened"))
    (source / "README.md").write_text("# a run")
    return Brought(source, room.base())


def inner(*names: str) -> Callable[[Room], Brought]:
    def bring(room: Room) -> Brought:
        source = room.new()
        for name in names:
            trained.adapter(room.base(), source / name)
        return Brought(source, room.base())

    return bring


def export(name: str, kind: str) -> Callable[[Room], Brought]:
    """A real export whose base was made by code, of the sizes that its tensors have."""

    def bring(room: Room) -> Brought:
        source = room.exports / name
        if kind == "gpt_oss":
            base = room.root / "bases" / f"{kind}-for-{name}"
            rows = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])
            if not base.is_dir():
                miniatures.save(miniatures.gpt_oss(rows), base)
                for file in TOKENIZER:
                    shutil.copyfile(source / file, base / file)
            return Brought(source, base)
        return Brought(source, room.base(kind))

    return bring


class Payload:
    """A pickle that would run something."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("__import__('os').abort()",))


def hostile(source: Path) -> None:
    torch.save({"x": Payload()}, source / "adapter_model.bin")
    (source / WEIGHTS).unlink()


def drop(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: array for name, array in tensors.items() if part not in name}


def scale(part: str, factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {
        name: (array * factor).astype(array.dtype) if part in name else array for name, array in tensors.items()
    }


def rename(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name.replace(old, new): array for name, array in tensors.items()}


def also(bring: Callable[[Room], Brought], **options: Any) -> Callable[[Room], Brought]:
    """The same, converted with further options."""

    def bring_also(room: Room) -> Brought:
        brought = bring(room)
        return Brought(brought.source, brought.base, {**brought.options, **options})

    return bring_also


def on_base(bring: Callable[[Room], Brought], kind: str | None) -> Callable[[Room], Brought]:
    """The same with another base named, or with none."""
    return lambda room: Brought(bring(room).source, room.base(kind) if kind else None)


def packed_somehow(room: Room) -> Brought:
    """Experts as an Unsloth of a time saved them."""
    source = trained.adapter(room.base("gpt_oss"), room.new(), target_parameters=["mlp.experts.down_proj"])
    trained.change(source, auto_mapping={"unsloth_fixed": True})
    return Brought(source, room.base("gpt_oss"))


def gguf(room: Room) -> Brought:
    """A file for llama.cpp."""
    (source := room.new()).mkdir()
    (source / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    return Brought(source, room.base())


def empty(room: Room) -> Brought:
    """Nothing at all."""
    (source := room.new()).mkdir()
    return Brought(source, room.base())
