"""Where vLLM meets our way of running LoRA: its wrapper around a step's metadata, and its LoRA layers.

Loaded only inside vLLM's processes, by `service.engine.plugin`. Layers we don't know (experts, or a vLLM whose layers
look different) keep vLLM's own slots, and rows are grouped by adapter for them too.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from service.engine.cpu_lora.kind import Kind
from service.engine.cpu_lora.layer import Layer
from service.engine.cpu_lora.products import products_for
from service.engine.cpu_lora.step import Step
from service.engine.cpu_lora.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.engine.cpu_lora.form import Span

log = init_logger(__name__)

ASKED_OF_LAYERS = ("apply", "set_lora", "reset_lora", "slice_lora_a", "slice_lora_b", "_apply_lora_to_output")
"""What vLLM 0.32's linear layers have and we call or stand in for."""

MATRIX = 2
"""Dimensions of rows and columns."""


class CpuLora(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM's types are not followed
    """Stands in for vLLM's wrapper on the CPU: rows are sorted by adapter once a step, for all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = Step(torch.empty(0, dtype=torch.long))

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called before a step whose rows are not the last one's."""
        super().update_metadata(*args, **kwargs)
        self.step = Step(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_: Any,
    ) -> None:
        """Add scale·(x·Aᵀ)·Bᵀ to y in place, adapter by adapter, for layers that keep vLLM's own slots.

        x [rows, in], y [rows, sum(output_slices)]; A [slots, 1, rank, in] and B [slots, 1, out, rank] per slice.
        """
        for slot, rows in self.step.rows.items():
            inputs = x[rows]
            for a, b, span in zip(lora_a_stacked, lora_b_stacked, _spans(output_slices), strict=True):
                delta = inputs @ a[slot, 0].t() @ b[slot, 0].t()
                y[:, slice(*span)][rows] += delta.mul_(scale)


class Fitted:
    """Our layer in the place of the slots of one of vLLM's."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.layer = Layer(_kind(module))
        # Nobody writes or reads these any more; shape and type are still asked for.
        module.lora_a_stacked = tuple(each.to("meta") for each in module.lora_a_stacked)
        module.lora_b_stacked = tuple(each.to("meta") for each in module.lora_b_stacked)
        module.set_lora = self.set_lora
        module.reset_lora = self.reset_lora
        module._apply_lora_to_output = self.apply_to_output  # noqa: SLF001
        module.loradock = self

    def weights(self, lora_a: Any, lora_b: Any) -> Weights | None:
        """Weights in vLLM's form, a tensor or a list with one or None for each slice, in ours."""
        module, kind = self._module, self.layer.kind
        if isinstance(lora_b, list) and len(lora_b) != len(kind.spans):
            lora_a, lora_b = module.expand_packed_lora(lora_a, lora_b)
        if module.tp_size > 1:
            lora_a, lora_b = module.slice_lora_a(lora_a), module.slice_lora_b(lora_b)
        if not isinstance(lora_a, list):
            lora_a, lora_b = [lora_a], [lora_b]
        return Weights.of(kind, lora_a, lora_b)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """As vLLM's; `prepare` has made weights of both, for what comes from a file."""
        self.layer.put(index, lora_a if isinstance(lora_a, Weights) else self.weights(lora_a, lora_b))

    def reset_lora(self, index: int) -> None:
        """As vLLM's."""
        self.layer.put(index, None)

    def apply_to_output(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """As vLLM's: what the step's adapters add, on top of what the base said."""
        step = self._module.punica_wrapper.step
        if step.rows:
            # vLLM's transformers backend has a batch dimension around the rows.
            rows, inputs = (output, x) if x.dim() == MATRIX else (output.flatten(0, 1), x.flatten(0, 1))
            self.layer.add(rows, inputs, step)
        return output


def _kind(module: Any) -> Kind:
    a = module.lora_a_stacked[0]
    slots, _, _, inputs = a.shape
    products = products_for(a.dtype, (inputs, *module.output_slices))
    return Kind(inputs, _spans(module.output_slices), a.dtype, slots, products)


def fit(modules: Iterable[Any]) -> None:
    """Put our layer into each of vLLM's that we know."""
    for module in modules:
        if not isinstance(module, BaseLinearLayerWithLoRA):
            continue
        lacking = [name for name in ASKED_OF_LAYERS if not hasattr(module, name)]
        if lacking or module.lora_config.fully_sharded_loras or not isinstance(module.punica_wrapper, CpuLora):
            log.warning_once("LoRA runs adapter by adapter: %s is not as loradock knows it.", type(module).__name__)
        else:
            Fitted(module)


def prepare(manager: Any, lora: Any) -> None:
    """Bring an adapter that has been read into our form, in whichever thread reads; vLLM's manager takes it so."""
    manager._create_merged_loras_inplace(lora)  # noqa: SLF001
    for name, module in manager.modules.items():
        weights = lora.get_lora(name)
        if weights is not None and (fitted := getattr(module, "loradock", None)):
            weights.lora_a = weights.lora_b = fitted.weights(weights.lora_a, weights.lora_b)


def _spans(widths: Sequence[int]) -> tuple[Span, ...]:
    return tuple(pairwise(accumulate(widths, initial=0)))
