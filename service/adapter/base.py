"""The base model as its own files describe it: module names and shapes, tokenizer, end tokens. No weights are read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from service.adapter.files import TOKENIZER_LIMIT, parse_object, read_bytes
from service.adapter.modules import Experts, find_experts, find_modules, stored_weights
from service.adapter.quantised import packed_modules
from service.adapter.safetensors_header import Header, InvalidHeader, TensorEntry, read_header, read_rows
from service.adapter.tokenizer import Tokenizer, read_tokenizer
from service.errors import ConfigurationError, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")
DTYPES: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the base: the file it is in and its place there."""

    file: str
    entry: TensorEntry


@dataclass(frozen=True, eq=False)
class Base:
    """A base model's directory, read once. Two are equal when configuration, tensor headers and sizes are."""

    path: Path
    name: str
    """What adapters call it: as told, else `_name_or_path` of its config.json, else its directory's name."""
    fingerprint: str
    """SHA-256 over config.json and every safetensors header and file size."""
    modules: Mapping[str, tuple[int, int]] = field(repr=False)
    """Linear module path → (outputs, inputs)."""
    experts: Mapping[str, Experts] = field(repr=False)
    """Path of a mixture's experts → their number and shapes."""
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    """Every tensor by its own name."""
    vocab_size: int
    """Rows of the embedding: an id from here on has no row."""
    max_position_embeddings: int | None
    architecture: str
    model_type: str
    tie_word_embeddings: bool
    dtype: str
    """bfloat16, float16 or float32, as its configuration or else most of its weights have it."""
    tokenizer: Tokenizer = field(repr=False)
    end_token_ids: frozenset[int]
    """Ids on which generation ends by itself."""

    @property
    def chat_template(self) -> str | None:
        """The base's own chat template."""
        return self.tokenizer.template

    @property
    def serving_dtype(self) -> str:
        """What it is served in when nothing else is asked for: its own type, or bfloat16 if that is of 32 bit."""
        return "bfloat16" if self.dtype == "float32" else self.dtype

    @classmethod
    def open(cls, model: str, name: str | None = None) -> Base:
        """Read the base from a directory or, by its hub id, from the local cache. Raises ConfigurationError."""
        path, hub_id = find_model(model)
        return cls.read(path, name or hub_id)

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> Base:
        """Read the base from a directory. Raises ConfigurationError saying what the directory lacks."""
        config = _read_object(path, "config.json")
        if config is None:
            raise ConfigurationError(f"{path} is no model directory: it has no config.json.{_hint(path)}")
        inner = config.get("text_config")
        text = {**config, **inner} if isinstance(inner, dict) else config
        headers = _read_headers(path)
        tensors = {
            tensor: StoredTensor(file, entry)
            for file, header in headers.items()
            for tensor, entry in header.tensors.items()
        }
        entries = {tensor: stored.entry for tensor, stored in tensors.items()}
        tokenizer = _read_tokenizer(path)
        return cls(
            path=path,
            name=name or _name_of(config, path),
            fingerprint=_fingerprint(config, headers),
            modules=MappingProxyType(_modules(path, config, tensors)),
            experts=MappingProxyType(find_experts(entries, text.get("hidden_size"))),
            tensors=MappingProxyType(tensors),
            vocab_size=_vocab_size(entries, text),
            max_position_embeddings=next(_integers([text.get("max_position_embeddings")]), None),
            architecture=str(next(iter(config.get("architectures") or []), "")),
            model_type=str(config.get("model_type", "")),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", "lm_head.weight" not in entries)),
            dtype=_dtype(text, entries),
            tokenizer=tokenizer,
            end_token_ids=_end_token_ids(path, text, tokenizer),
        )

    def read_rows(self, tensor: str, first: int, count: int) -> np.ndarray[Any, Any]:
        """`count` rows of one tensor from row `first`. Raises KeyError and OSError."""
        return _read_rows(self.path, self.tensors[tensor], first, count)

    def weights_of(self, module: str) -> list[str]:
        """Names of the tensors that make up a module's weight; a mixture's experts may be stored one by one."""
        return stored_weights(module, self.tensors, self.experts)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same weights as far as their headers tell."""
        return isinstance(other, Base) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        """By what `__eq__` compares, so that what was measured of a base can be kept under it."""
        return hash(self.fingerprint)


def find_model(model: str) -> tuple[Path, str | None]:
    """A directory as it is, or the snapshot of a hub id in the local Hugging Face cache and that id.

    The network is never asked. Raises ConfigurationError.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory, None
    if not HUB_ID.fullmatch(model):
        raise ConfigurationError(f"There is no directory {model}.")
    repository = _hub_cache() / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = repository / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot, model
    raise ConfigurationError(
        f"There is neither a directory {model} nor a model of that name in the local cache ({_hub_cache()}). "
        f"Download it first: hf download {model}"
    )


def _hub_cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _read_object(path: Path, name: str) -> dict[str, Any] | None:
    try:
        raw = read_bytes(path, name, TOKENIZER_LIMIT, follow=True)
        return None if raw is None else parse_object(raw)
    except Rejected as error:
        raise ConfigurationError(f"The base model in {path}: {error.problems[0].message}") from None
    except ValueError as error:
        raise ConfigurationError(f"{name} of the base model in {path} can't be read: {error}.") from None


def _hint(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return " It holds a LoRA adapter; --model names the base it was trained on."
    return ""


def _read_headers(path: Path) -> dict[str, Header]:
    headers = {}
    for name in _weight_files(path):
        try:
            with (path / name).open("rb", buffering=0) as file:
                headers[name] = read_header(file)
        except InvalidHeader as error:
            raise ConfigurationError(f"{name} of the base model in {path} is not sound: {error}.") from None
        except OSError as error:
            raise ConfigurationError(f"{name} of the base model in {path} can't be read: {error.strerror}.") from None
    return headers


def _weight_files(path: Path) -> list[str]:
    index = _read_object(path, INDEX)
    if index is not None:
        table = index.get("weight_map")
        names = list(table.values()) if isinstance(table, dict) else []
        if names and all(isinstance(name, str) and Path(name).name == name for name in names):
            return sorted(set(names))
        raise ConfigurationError(f"{INDEX} of the base model in {path} doesn't name files of its own directory.")
    if (path / SINGLE).is_file():
        return [SINGLE]
    # Shards whose index was lost (older exporters): their headers say all that the index did.
    shards = sorted(shard.name for shard in path.glob("model-*-of-*.safetensors"))
    if not shards:
        raise ConfigurationError(f"{path} is no model directory: it has no model.safetensors.")
    return shards


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return read_tokenizer(path, follow=True)
    except Rejected as error:
        raise ConfigurationError(f"The base model's tokenizer: {error.problems[0].message}") from None


def _modules(path: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, int]]:
    entries = {name: stored.entry for name, stored in tensors.items()}
    settings = config.get("quantization_config")

    def read(name: str) -> np.ndarray[Any, Any]:
        return _read_rows(path, tensors[name], 0, tensors[name].entry.shape[0])

    try:
        packed = packed_modules(entries, settings if isinstance(settings, dict) else {}, read)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"The base model's quantisation can't be read: {error}") from None
    return find_modules(entries, str(config.get("model_type", ""))) | packed


def _read_rows(path: Path, stored: StoredTensor, first: int, count: int) -> np.ndarray[Any, Any]:
    with (path / stored.file).open("rb", buffering=0) as file:
        return read_rows(file, stored.entry, first, count)


def _name_of(config: Mapping[str, Any], path: Path) -> str:
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and name else path.resolve().name


def _fingerprint(config: Mapping[str, Any], headers: Mapping[str, Header]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode() + b"\n")
    for name in sorted(headers):
        digest.update(f"{name}\0{headers[name].size}\0{headers[name].digest}\n".encode())
    return digest.hexdigest()


def _vocab_size(entries: Mapping[str, TensorEntry], text: Mapping[str, Any]) -> int:
    rows = [entry.shape[0] for name, entry in entries.items() if name.endswith(("embed_tokens.weight", "wte.weight"))]
    size = text.get("vocab_size")
    if rows:
        return max(rows)
    if isinstance(size, int):
        return size
    raise ConfigurationError("The base model has no vocabulary: no vocab_size in its config.json and no embedding.")


def _dtype(text: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> str:
    named = text.get("dtype") or text.get("torch_dtype")
    if named in DTYPES.values():
        return str(named)
    sizes = dict.fromkeys(DTYPES, 0)
    for entry in entries.values():
        if entry.dtype in sizes:
            sizes[entry.dtype] += entry.end - entry.start
    return DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]


def _end_token_ids(path: Path, text: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    generation = _read_object(path, "generation_config.json") or {}
    ids: list[Any] = [text.get("eos_token_id"), generation.get("eos_token_id")]
    if tokenizer.vocabulary and tokenizer.end_token:
        ids.append(tokenizer.vocabulary.ids.get(tokenizer.end_token))
    return frozenset(_integers(ids))


def _integers(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, list):
            yield from _integers(value)
        elif type(value) is int:
            yield value
