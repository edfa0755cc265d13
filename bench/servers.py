"""loradock and vLLM's own server over the same base and adapters, started as a user starts them."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import httpx2
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

START_SECONDS = 300
STOP_SECONDS = 60
OURS = {
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_WAIT_POLICY": "ACTIVE",
    "GOMP_SPINCOUNT": "1000000",
    "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
}
"""The variables that `service/engine/arguments.py` sets on a CPU, beside what changes no figure."""
SAME = ("--kv-cache-memory-bytes", str(1 << 30), "--max-num-seqs", "128", "--max-num-batched-tokens", "2048")
"""Said to every server of `turns`, since what they choose by themselves differs; small enough for several at once."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Kind:
    """One way to serve."""

    what: str
    lora: bool = True
    variables: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


LORADOCK = "loradock"
KINDS = {
    LORADOCK: Kind("loradock serve"),
    "vllm": Kind("vLLM's server with LoRA, as it comes"),
    "vllm-same": Kind("the same with loradock's variables: both cores, uncompiled", variables=OURS),
    "vllm-same-targets": Kind(
        "the same, LoRA on the projections only as loradock has it",
        variables=OURS,
        arguments=("--lora-target-modules", *PROJECTIONS),
    ),
    "vllm-nolora": Kind("vLLM's server without LoRA, uncompiled, both cores", lora=False, variables=OURS),
    "vllm-nolora-compiled": Kind(
        "vLLM's server without LoRA, compiled, both cores",
        lora=False,
        variables=OURS | {"TORCH_COMPILE_DISABLE": "0"},
    ),
}


@dataclass(frozen=True)
class Running:
    """A server that is up."""

    url: str
    process: subprocess.Popen[bytes]

    def pause(self) -> None:
        """Stop it with all its processes, which would take the cores in busy loops though nobody asks them."""
        for member in self._members():
            member.suspend()
        while any(member.status() != psutil.STATUS_STOPPED for member in self._members()):
            time.sleep(0.01)

    def resume(self) -> None:
        """Let it go on."""
        for member in self._members():
            member.resume()

    def end(self) -> None:
        """Ask it to end, and end what is left of it."""
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _members(self) -> list[psutil.Process]:
        """Everything that runs in the session it was started in."""
        members = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members


@contextmanager
def running(
    kind: str, base: Path, adapters: Path, names: Sequence[str], room: Path, *further: str
) -> Iterator[Running]:
    """A server of one of KINDS with the adapters `names` of the directory `adapters`; logs to `room`/KIND.log."""
    port = _free_port()
    how = KINDS[kind]
    common = ["--model", base, "--served-model-name", "base", "--port", str(port), *how.arguments, *further]
    variables = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | how.variables
    if kind == LORADOCK:
        command = ["-m", "service", "serve", *common, "--adapters-dir", adapters, "--state-dir", room / "state"]
    else:
        command = ["-m", "vllm.entrypoints.openai.api_server", *common]
        # Neither changes a figure: our plugin is kept out, and the call that loads an adapter is let in.
        variables |= {"VLLM_PLUGINS": "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        if how.lora:
            modules = [f"{name}={adapters / name}" for name in names]
            command += ["--enable-lora", *(["--lora-modules", *modules] if modules else [])]
    signal.signal(signal.SIGTERM, _leave)
    log = room / f"{kind}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | variables,
        )
    server = Running(f"http://127.0.0.1:{port}", process)
    try:
        _wait(server, "/readyz" if kind == LORADOCK else "/health", log)
        yield server
    finally:
        server.end()


@contextmanager
def loradock(base: Path, adapters: Path, room: Path, *further: str) -> Iterator[str]:
    """A service with everything in `adapters` registered; yields its address."""
    with running(LORADOCK, base, adapters, (), room, *further) as server:
        yield server.url


@contextmanager
def turns(
    kinds: Sequence[str], base: Path, adapters: Path, names: Sequence[str], room: Path, *sizes: str
) -> Iterator[Callable[[int], Iterator[tuple[str, str]]]]:
    """Servers of several kinds, all up and all stopped but for the one whose turn it is.

    What it yields gives one round: (kind, address), each running until the next is asked for; who begins changes with
    the round's number.
    """
    with ExitStack() as stack:
        up: dict[str, Running] = {}
        for kind in kinds:
            further = SAME + (sizes if KINDS[kind].lora else ())
            up[kind] = stack.enter_context(running(kind, base, adapters, names, room, *further))
            up[kind].pause()

        def round_(number: int) -> Iterator[tuple[str, str]]:
            first = number % len(kinds)
            for kind in (*kinds[first:], *kinds[:first]):
                up[kind].resume()
                yield kind, up[kind].url
                up[kind].pause()

        yield round_


def among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What a flag takes that names some of `known`, with commas between them."""
    known = list(known)

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return found

    return names


def _leave(*_: object) -> NoReturn:
    """A bench that is told to end doesn't leave servers behind."""
    sys.exit(128 + signal.SIGTERM)


def _wait(server: Running, path: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(httpx2.TransportError):
            if httpx2.get(server.url + path, timeout=5).status_code == httpx2.codes.OK:
                return
        time.sleep(0.5)
    raise RuntimeError(f"not up: {server.url}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
