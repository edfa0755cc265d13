"""Six adapters and the base in the same batches: nobody speaks with another's voice."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from service_process import ServiceProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUESTS = 200
TOKENS = 8


def strengthened(source: Path, target: Path, factor: float) -> None:
    """A sibling of a demo adapter with its own strength, and so its own answers."""
    shutil.copytree(source, target)
    weights = load_file(source / "adapter_model.safetensors")
    for name, values in weights.items():
        if "lora_B" in name:
            weights[name] = (values.astype(np.float32) * factor).astype(ml_dtypes.bfloat16)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})


def test_every_answer_equals_the_solo_answer(
    service: ServiceProcess, demo_adapters: Path, voices: dict[str, str]
) -> None:
    """200 requests on seven models, sixteen at a time, against one request at a time."""
    models = [BASE, *voices]
    with service.http() as http:
        for source, factor in ((name, factor) for name in voices for factor in (0.7, 1.3)):
            name = f"mixed-{source}-{factor}"
            strengthened(demo_adapters / source, service.adapters_dir / ".incoming" / name, factor)
            answer = http.post("/adapters", json={"name": name, "path": f".incoming/{name}"})
            assert answer.status_code == 201, answer.text
            models.append(name)
    questions = [f"What is the capital of {country}?" for country in ("France", "Italy", "Germany", "Japan")]
    pairs = [(model, question) for model in models for question in questions]
    solo = {pair: service.chat(*pair, max_tokens=TOKENS) for pair in pairs}
    assert len({solo[model, questions[0]] for model in models}) >= 3
    asked = random.Random(7).choices(pairs, k=REQUESTS)

    async def ask_all() -> list[str]:
        client = service.async_client()
        at_once = asyncio.Semaphore(16)

        async def ask(model: str, question: str) -> str:
            async with at_once:
                answer = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=TOKENS,
                )
                return answer.choices[0].message.content or ""

        return await asyncio.gather(*(ask(*pair) for pair in asked))

    answers = asyncio.run(ask_all())
    wrong = [(pair, answer, solo[pair]) for pair, answer in zip(asked, answers, strict=True) if answer != solo[pair]]
    assert not wrong
