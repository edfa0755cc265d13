"""loradock and vLLM's own server over the same base and adapters, started as a user starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx2
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_SECONDS = 300
WEIGHTS = "adapter_model.safetensors"


def make_adapters(source: Path, target: Path, count: int) -> list[str]:
    """Siblings of one adapter that differ a little in strength, so that each has a content of its own."""
    names = []
    for number in range(count):
        name = f"a{number:02d}"
        directory = target / name
        directory.mkdir(parents=True)
        tensors = load_file(source / WEIGHTS)
        for key in [key for key in tensors if "lora_B" in key]:
            scaled = tensors[key].astype(np.float32) * (1 - number / (4 * count))
            tensors[key] = scaled.astype(ml_dtypes.bfloat16)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        names.append(name)
    return names


@contextmanager
def loradock(base: Path, adapters: Path, room: Path, *further: str) -> Iterator[str]:
    """A service with everything in `adapters` registered; yields its address."""
    with loradock_process(base, adapters, room, *further) as (url, _):
        yield url


@contextmanager
def loradock_process(
    base: Path, adapters: Path, room: Path, *further: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same, with the process."""
    port = _free_port()
    command = ["serve", "--model", base, "--served-model-name", "base", "--adapters-dir", adapters]
    command += ["--state-dir", room / "state", "--port", str(port), *further]
    with _running([sys.executable, "-m", "service", *command], room / "loradock.log", port, "/readyz") as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def stock(base: Path, adapters: Path, names: list[str], room: Path, *further: str) -> Iterator[str]:
    """vLLM's own server with the same adapters as --lora-modules; all cores for its engine too."""
    port = _free_port()
    modules = [f"{name}={adapters / name}" for name in names]
    command = ["--model", base, "--served-model-name", "base", "--enable-lora", "--port", str(port), *further]
    command += ["--kv-cache-memory-bytes", str(4 << 30), *(["--lora-modules", *modules] if modules else [])]
    module = "vllm.entrypoints.openai.api_server"
    with _running([sys.executable, "-m", module, *command], room / "stock.log", port, "/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str | Path], log: Path, port: int, health: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1"},
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{health}", log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx2.get(url, timeout=5).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"not up: {url}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
