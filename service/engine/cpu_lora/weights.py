"""One adapter's weights of one fused layer, ready to be multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from service.engine.cpu_lora.form import form_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.engine.cpu_lora.form import Form, Span
    from service.engine.cpu_lora.kind import Kind


@dataclass(frozen=True, slots=True)
class Slice:
    """What the adapter adds to one slice of the layer's output (q, k or v; gate or up)."""

    span: Span
    """Its columns of the output."""
    columns: Span
    """Its columns of the hidden values, x·Aᵀ."""
    b: torch.Tensor
    """[outputs, rank], as it was loaded."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A and B as an arena takes them, zeros beyond the ranks; and each slice's own B, for many rows at once."""

    form: Form
    a: torch.Tensor
    """[spans · width, inputs], packed."""
    b: tuple[torch.Tensor, ...]
    """[outputs of the span, width] for each span, packed."""
    slices: tuple[Slice, ...]
    effects: tuple[bool, ...]
    """For each slice whether any of its weights isn't zero."""

    @classmethod
    def of(
        cls, kind: Kind, lora_a: Sequence[torch.Tensor | None], lora_b: Sequence[torch.Tensor | None]
    ) -> Weights | None:
        """From a tensor or None for each slice of the layer; None where the adapter has nothing in it."""
        pairs = list(zip(lora_a, lora_b, kind.spans, strict=True))
        given = [(a, b, span) for a, b, span in pairs if a is not None and b is not None]
        form = form_of(kind.spans, [0 if b is None else b.shape[1] for _, b, _ in pairs])
        if form is None:
            return None
        a = torch.zeros((len(form.spans) * form.width, kind.inputs), dtype=kind.dtype)
        b = [torch.zeros((end - begin, form.width), dtype=kind.dtype) for begin, end in form.spans]
        slices = []
        taken = 0
        for rows, outputs, span in given:
            rank = outputs.shape[1]
            # Slices that share a span have columns of their own in it.
            index, column = (0, taken) if len(form.spans) == 1 else (form.spans.index(span), 0)
            begin = form.spans[index][0]
            first = index * form.width + column
            a[first : first + rank] = rows
            b[index][span[0] - begin : span[1] - begin, column : column + rank] = outputs
            slices.append(Slice(span, (first, first + rank), outputs.contiguous()))
            taken += rank
        effects = tuple(bool(rows.any() or outputs.any()) for rows, outputs, _ in given)
        pack = kind.products.pack
        return cls(form, pack(a), tuple(map(pack, b)), tuple(slices), effects)
