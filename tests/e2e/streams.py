"""Streams that outlive the signal that ends their service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

    from service_process import ServiceProcess

TOKENS = 100


def deltas(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def stream_through(service: ServiceProcess, model: str, number: signal.Signals) -> None:
    """Signal the whole group in the middle of a stream; it must reach its end, and then the service ends."""
    body = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx2.stream("POST", f"{service.url}/v1/completions", json=body, timeout=300) as answer:
        lines = answer.iter_lines()
        chunks = deltas(lines)
        for _ in range(5):
            next(chunks)
        service.signal_group(number)
        last = list(chunks)[-1]
    assert last["usage"]["completion_tokens"] == TOKENS
    assert service.process is not None
    assert service.process.wait(60) in {0, -number}
