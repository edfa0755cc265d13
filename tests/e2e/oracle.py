"""What an adapter must answer: transformers and peft, greedy, on the same weights in the same type."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def greedy(base: Path, adapter: Path | None, prompts: list[str], max_tokens: int) -> list[str]:
    """One greedy answer per chat prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    template = adapter / "chat_template.jinja" if adapter else None
    own = template.read_text() if template and template.is_file() else None
    answers = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            chat_template=own,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = model.generate(**ids, do_sample=False, max_new_tokens=max_tokens)
        answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


if __name__ == "__main__":
    # In a process of its own: torch and its threads leave when it is done.
    base, adapter, max_tokens = sys.argv[1:4]
    answers = greedy(Path(base), Path(adapter) if adapter else None, json.load(sys.stdin), int(max_tokens))
    json.dump(answers, sys.stdout)
