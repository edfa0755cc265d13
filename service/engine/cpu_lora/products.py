"""Batched products with packed weights: vLLM's own AVX-512 and AMX kernels where they work, torch's elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from vllm.logger import init_logger

log = init_logger(__name__)

TRIED = ((1, 1), (3, 5), (1, 40))
"""Slots and rows of the trial: few rows and many take different ways through the kernels."""

TOLERANCE = 0.02
"""Of bf16's 0.004 after sums of 64 terms; a wrong layout is off by everything."""


class Products(Protocol):
    """One way to multiply. Weights are [slots, outputs, inputs]."""

    def pack(self, weights: torch.Tensor) -> torch.Tensor:
        """A slot's weights [outputs, inputs] as `multiply` wants them, in the same shape."""

    def multiply(self, out: torch.Tensor, x: torch.Tensor, packed: torch.Tensor) -> None:
        """Set out [slots, rows, outputs] to x [slots, rows, inputs] times the packed weights, transposed."""


class Vnni:
    """vLLM's kernels for weights in its packed format; inputs and outputs are multiples of `ALIGNED`."""

    ALIGNED = 32

    def __init__(self) -> None:
        import vllm._C  # noqa: F401  (registers the operations)

        self._pack = torch.ops._C.convert_weight_packed.default  # noqa: SLF001
        self._multiply = torch.ops._C.bmm_cpu.default  # noqa: SLF001

    def pack(self, weights: torch.Tensor) -> torch.Tensor:
        """See Products."""
        return self._pack(weights)

    def multiply(self, out: torch.Tensor, x: torch.Tensor, packed: torch.Tensor) -> None:
        """See Products."""
        self._multiply(out, x, packed, True, None)


class Plain:
    """torch's batched product, for other processors and other types."""

    def pack(self, weights: torch.Tensor) -> torch.Tensor:
        """See Products."""
        return weights

    def multiply(self, out: torch.Tensor, x: torch.Tensor, packed: torch.Tensor) -> None:
        """See Products."""
        torch.bmm(x, packed.transpose(1, 2), out=out)


def products_for(dtype: torch.dtype, widths: tuple[int, ...]) -> Products:
    """The fastest that is right on this processor for a layer with these input and output widths."""
    if dtype is torch.bfloat16 and all(width % Vnni.ALIGNED == 0 for width in widths):
        return _tried()
    return _plain()


@cache
def _plain() -> Products:
    return Plain()


@cache
def _tried() -> Products:
    try:
        vnni = Vnni()
        if _right(vnni):
            return vnni
        reason = "they compute something else"
    except (AttributeError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    log.warning("LoRA runs on torch's products, since vLLM's packed ones can't be used here: %s", reason)
    return _plain()


def _right(products: Products) -> bool:
    generator = torch.Generator().manual_seed(0)
    size = 2 * Vnni.ALIGNED
    for slots, rows in TRIED:
        weights = torch.randn(slots, size, size, generator=generator).bfloat16()
        # As layers use them: columns of a wider matrix in, columns of a wider matrix out.
        x = torch.randn(slots, rows, 2 * size, generator=generator).bfloat16()[:, :, size:]
        out = torch.empty(slots, rows, 2 * size, dtype=torch.bfloat16)[:, :, size:]
        packed = torch.stack([products.pack(each) for each in weights])
        products.multiply(out, x, packed)
        expected = x.double() @ weights.double().transpose(1, 2)
        if not (out.double() - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return False
    return True
