"""What the service asks of vLLM's workers: methods added to every worker, called by `collective_rpc`.

They hold for both model runners and touch nothing but the LoRA manager. Names carry our prefix, since they are
mixed into vLLM's own class.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from service.engine.plugin import LEAST_URGENT


def _give_way() -> None:
    """Let the steps have the cores first.

    With threads of its own this one would make OpenMP count more of them than there are cores, for good; from then on
    the steps' threads sleep at the end of every product instead of waiting for the next.
    """
    torch.set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)


_reader = ThreadPoolExecutor(1, thread_name_prefix="loradock-read", initializer=_give_way)
"""One at a time: reading competes with the steps for the interpreter and the memory's bandwidth."""


class WorkerExtension:
    """Mixed into the worker by `--worker-extension-cls`."""

    model_runner: Any

    def loradock_read(self, lora_id: int, name: str, path: str) -> None:
        """Begin to read an adapter's file in a thread, so that steps go on meanwhile."""
        self._loradock_reads[lora_id] = _reader.submit(self._loradock_load, LoRARequest(name, lora_id, path))

    def _loradock_load(self, request: LoRARequest) -> Any:
        lora = self.model_runner.lora_manager._load_adapter(request)  # noqa: SLF001
        if self._loradock_on_cpu:
            from service.engine.cpu_lora.wrapper import prepare

            prepare(self.model_runner.lora_manager._adapter_manager, lora)  # noqa: SLF001
        return lora

    def loradock_register(self, lora_id: int) -> bool | str:
        """Hand an adapter that has been read to vLLM's cache, without taking a slot: between two steps, in moments.

        True when that is done, False while it is still being read, or the reason why it can't be had.
        """
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001
        if lora_id in manager.list_adapters():
            return True
        read = self._loradock_reads[lora_id]
        if not read.done():
            return False
        del self._loradock_reads[lora_id]
        try:
            lora = read.result()
            if self._loradock_on_cpu:
                # Merging layers is what vLLM's add_adapter does besides; that has been done while reading.
                manager._registered_adapters[lora.id] = lora  # noqa: SLF001
            else:
                manager.add_adapter(lora)
        except Exception as error:  # noqa: BLE001 (whatever vLLM finds wrong with it is an answer, not a failure of ours)
            return f"{type(error).__name__}: {error}"
        return True

    @property
    def _loradock_reads(self) -> dict[int, Future[Any]]:
        reads: dict[int, Future[Any]] = self.__dict__.setdefault("loradock_reads", {})
        return reads

    def loradock_guards(self) -> dict[str, bool]:
        """Which guards of `service.engine.plugin` are in force in this worker; the service won't start without."""
        config = self.model_runner.kv_cache_config
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001
        wrappers = manager.punica_wrapper_mapping.values()
        return {
            "blocks_are_zeroed": bool(config.needs_kv_cache_zeroing),
            "rows_are_apart": not self._loradock_on_cpu or all(hasattr(wrapper, "step") for wrapper in wrappers),
        }

    @property
    def _loradock_on_cpu(self) -> bool:
        return bool(self.model_runner.device.type == "cpu")

    def loradock_resident(self) -> dict[int, str]:
        """Adapter id → "gpu" (in a slot) or "cpu" (in memory)."""
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001
        slots = set(manager.lora_index_to_id)
        return {lora_id: "gpu" if lora_id in slots else "cpu" for lora_id in manager.list_adapters()}

    def loradock_modules(self, lora_id: int) -> int:
        """How many of the adapter's modules arrived in its slot with any weight that isn't zero.

        A packed layer (qkv_proj, gate_up_proj) counts once for each part, as the adapter's file does.
        """
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001
        manager.activate_adapter(lora_id)
        slot = manager.lora_index_to_id.index(lora_id)
        return sum(_arrived(module, slot) for module in manager.modules.values())


def _arrived(module: Any, slot: int) -> int:
    if fitted := getattr(module, "loradock", None):
        return int(fitted.layer.arrived(slot))
    pairs = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
    return sum(bool(a[slot].any() or b[slot].any()) for a, b in pairs)
