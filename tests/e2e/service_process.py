"""The real service in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx2
import openai

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 240.0
"""Three processes import vLLM one after the other; a busy machine with two cores takes its time."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class ServiceProcess:
    """`loradock serve` on a free port, in a process group of its own."""

    model: Path
    adapters_dir: Path
    state_dir: Path
    log: Path
    further: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        arguments = ["--model", self.model, "--adapters-dir", self.adapters_dir, "--state-dir", self.state_dir]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", *arguments, "--port", str(self.port), *self.further],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the service ended early:\n{self.tail()}"
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=5).status_code == httpx2.codes.OK:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the service was not ready in {START_SECONDS:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does on Ctrl-C and a supervisor on stopping: every process of the group gets it."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """kill -9 of the service's own process; its engine has to notice by itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def terminate(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait_until_ended(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.signal_group(signal.SIGKILL)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=300)

    def chat(self, model: str, question: str, **fields: Any) -> str:
        answer = self.client().chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            **({"max_tokens": 32} | fields),
        )
        return answer.choices[0].message.content or ""
