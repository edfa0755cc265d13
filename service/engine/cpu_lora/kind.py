"""What fused layers have in common that can share the work of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from service.engine.cpu_lora.form import Span
    from service.engine.cpu_lora.products import Products


@dataclass(frozen=True)
class Kind:
    """Shapes, type and way of multiplying of a fused layer."""

    inputs: int
    spans: tuple[Span, ...]
    """The output columns of each slice (q, k and v; gate and up; or the whole)."""
    dtype: torch.dtype
    slots: int
    products: Products
