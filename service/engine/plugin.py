"""What is asked of vLLM inside its own processes: a general plugin, loaded by every vLLM of the environment.

It acts only where `loradock serve` put its marker into the environment, and only in the ways listed here:

- KV-cache blocks are zeroed when they are allocated, so that NaNs of one request never reach another;
- on the CPU, rows without an adapter are out of LoRA's reach (`cpu_lora`);
- the engine's processes don't end when the terminal or the supervisor signals the whole group: the service lets
  running streams finish first, then tells them; and they do end when the service is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

MARKER = "_LORADOCK_ISOLATE"
"""Set by `serve` for itself and so for the engine's processes."""

END = signal.SIGUSR1
"""From the service to the engine's process: what SIGTERM means elsewhere."""

ORPHAN_CHECK_SECONDS = 1.0


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; may run several times in one process."""
    if os.environ.get(MARKER) != "1":
        return
    _zero_blocks()
    if _on_cpu():
        _group_rows()
    if multiprocessing.parent_process() is not None:
        _outlast_signals()
        _end_with_parent()


def _zero_blocks() -> None:
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _group_rows() -> None:
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.platforms import current_platform

    type(current_platform).get_punica_wrapper = classmethod(lambda _: "service.engine.cpu_lora.GroupedLoRA")
    if not hasattr(LoRAModelManager.activate_adapter, "notes_ranks"):
        LoRAModelManager.activate_adapter = _noting_ranks(LoRAModelManager.activate_adapter)


def _noting_ranks(activate: Any) -> Any:
    def activate_adapter(manager: Any, lora_id: int) -> Any:
        activated = activate(manager, lora_id)
        slot = manager.lora_index_to_id.index(lora_id)
        rank = true_rank(manager.get_adapter(lora_id))
        for wrapper in manager.punica_wrapper_mapping.values():
            wrapper.ranks[slot] = rank
        return activated

    activate_adapter.notes_ranks = True  # type: ignore[attr-defined]
    return activate_adapter


def true_rank(lora: Any) -> int:
    """The largest rank among an adapter's layers, as its tensors have it. Packed layers hold a list of tensors."""
    tensors = (
        a
        for layer in lora.loras.values()
        for a in (layer.lora_a if isinstance(layer.lora_a, list) else [layer.lora_a])
        if a is not None
    )
    return max((a.shape[0] for a in tensors), default=0)


def _outlast_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    end = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if callable(end):
        signal.signal(END, lambda _, frame: end(signal.SIGTERM, frame))


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="loradock-parent-watch", daemon=True).start()
