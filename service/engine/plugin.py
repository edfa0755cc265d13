"""What is asked of vLLM inside its own processes: a general plugin, loaded by every vLLM of the environment.

It acts only where `loradock serve` put its marker into the environment, and only in the ways listed here:

- KV-cache blocks are zeroed when they are allocated, so that NaNs of one request never reach another;
- on the CPU, LoRA runs our way (`cpu_lora`): fast, and a row is out of every other adapter's reach;
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

LEAST_URGENT = 19
"""The lowest priority Linux has, for what must not take the cores from a step. Linux keeps one for each thread."""

ORPHAN_CHECK_SECONDS = 1.0


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; may run several times in one process."""
    if os.environ.get(MARKER) != "1":
        return
    _zero_blocks()
    if _on_cpu():
        _flush_denormals()
        _run_lora_our_way()
    if multiprocessing.parent_process() is not None:
        _outlast_signals()
        _end_with_parent()


def _zero_blocks() -> None:
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _run_lora_our_way() -> None:
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.platforms import current_platform

    type(current_platform).get_punica_wrapper = classmethod(lambda _: "service.engine.cpu_lora.wrapper.CpuLora")
    if not hasattr(LoRAModelManager._create_lora_modules, "fits_ours"):  # noqa: SLF001
        LoRAModelManager._create_lora_modules = _fitting_ours(LoRAModelManager._create_lora_modules)  # noqa: SLF001


def _fitting_ours(create: Any) -> Any:
    def create_lora_modules(manager: Any) -> None:
        from service.engine.cpu_lora.wrapper import fit

        create(manager)
        fit(manager.modules.values())

    create_lora_modules.fits_ours = True  # type: ignore[attr-defined]
    return create_lora_modules


def _flush_denormals() -> None:
    """Threads inherit it, so it is set before torch makes any. Numbers below 1e-38 cost a CPU a hundred times more."""
    import torch

    torch.set_flush_denormal(True)


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
