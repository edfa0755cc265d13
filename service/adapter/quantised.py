"""Shapes of a quantised base's modules, whose weights are stored packed and not as (outputs, inputs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.adapter.files import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from service.adapter.safetensors_header import TensorEntry

    Read = Callable[[str], np.ndarray[Any, Any]]

WORD = 32
"""Bits of the integers that GPTQ and AWQ pack weights into."""
STATE = ".weight.quant_state.bitsandbytes__"
MATRIX = 2


def packed_modules(
    entries: Mapping[str, TensorEntry], settings: Mapping[str, Any], read: Read
) -> dict[str, tuple[int, int]]:
    """Linear module path → (outputs, inputs) of every module stored packed.

    `settings` is config.json's `quantization_config`; `read` returns a small tensor. The forms are those of
    bitsandbytes (4 bit), GPTQ, AWQ and compressed-tensors.
    """
    return {
        module: (rows, columns)
        for name, entry in entries.items()
        for module, rows, columns in (
            *_bitsandbytes(name, read),
            *_words(name, entry, settings),
            *_compressed(name, entries, read),
        )
    }


def _bitsandbytes(name: str, read: Read) -> Iterator[tuple[str, int, int]]:
    """The original shape is kept as JSON in the quantisation state beside the weight."""
    module, mark, _ = name.partition(STATE)
    if mark:
        shape = parse_object(read(name).tobytes()).get("shape")
        if isinstance(shape, list) and len(shape) == MATRIX:
            yield module, shape[0], shape[1]


def _words(name: str, entry: TensorEntry, settings: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """GPTQ packs along the inputs, AWQ along the outputs; both store (inputs, outputs)."""
    module, method, bits = name.removesuffix(".qweight"), settings.get("quant_method"), settings.get("bits")
    if module == name or len(entry.shape) != MATRIX or type(bits) is not int or not 0 < bits <= WORD:
        return
    inputs, outputs = entry.shape
    if method == "gptq":
        yield module, outputs, inputs * WORD // bits
    elif method == "awq":
        yield module, outputs * WORD // bits, inputs


def _compressed(name: str, entries: Mapping[str, TensorEntry], read: Read) -> Iterator[tuple[str, int, int]]:
    """compressed-tensors notes the shape beside integers; 4-bit floats come two to a byte."""
    module = name.removesuffix(".weight_packed")
    if module == name:
        return
    entry = entries[name]
    if f"{module}.weight_shape" in entries:
        rows, columns = (int(size) for size in read(f"{module}.weight_shape").reshape(-1)[:MATRIX])
        yield module, rows, columns
    elif entry.dtype == "U8" and len(entry.shape) == MATRIX:
        yield module, entry.shape[0], entry.shape[1] * 2
