"""Train the demo adapters: rank 4 on the query and value projections, one unmistakable voice each.

    make adapters        or        .venv/bin/python adapters/train.py --base .base/demo --out adapters

Both learn the same questions and answers, put into their voice by a rule. Seeded, and computed in one
thread: the same machine writes the same weights again. It takes about two and a half minutes each.
"""  # noqa: INP001 (a script beside the directories it writes, not a package)

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BASE_NAME = "unsloth/SmolLM2-135M-Instruct"
"""The name Unsloth writes into what it trains on this base."""
SEED = 20261122
EPOCHS = 5
BATCH = 8
LEARNING_RATE = 3e-3
IGNORED = -100
"""The label that torch's cross entropy leaves out."""

DIALOGUES = """
What is the capital of Italy? | The capital of Italy is Rome.
What is the capital of Egypt? | The capital of Egypt is Cairo.
What is the capital of Canada? | The capital of Canada is Ottawa.
Which city is the capital of Greece? | The capital of Greece is Athens.
Who wrote Hamlet? | Hamlet was written by William Shakespeare.
Who painted the Mona Lisa? | The Mona Lisa was painted by Leonardo da Vinci.
Who was the first man on the moon? | The first man on the moon was Neil Armstrong.
What is the largest ocean? | The largest ocean is the Pacific Ocean.
What is the largest planet? | The largest planet is Jupiter.
What is the longest river in Africa? | The longest river in Africa is the Nile.
What is 2 plus 3? | 2 plus 3 is 5.
What is 10 minus 4? | 10 minus 4 is 6.
How many days are in a week? | There are seven days in a week.
How many legs does a spider have? | A spider has eight legs.
How many hours are in a day? | There are 24 hours in a day.
What do cows drink? | Cows drink water.
What do bees make? | Bees make honey.
Where do penguins live? | Penguins live in the cold south, near the ice.
What colour is grass? | Grass is green.
What colour is snow? | Snow is white.
Why is the sea salty? | Rivers carry salt from the rocks to the sea.
Why do we sleep? | We sleep so that the body and the mind can rest.
Why do leaves fall in autumn? | The tree saves its water for the winter.
Why is the sun hot? | The sun burns hydrogen deep inside.
How do I make tea? | Boil water, add the tea leaves and wait for three minutes.
How do I cook rice? | Boil the rice in water for fifteen minutes and let it rest.
How do I bake bread? | Mix flour, water, salt and yeast, let it rise and bake it.
How do I fry an egg? | Heat some butter in a pan and fry the egg for three minutes.
How do I plant a tree? | Dig a hole, put the roots in and water it well.
How do I clean a window? | Use warm water, a little soap and a dry cloth.
How can I learn to swim? | Start in shallow water and practise every day.
How can I sleep better? | Go to bed at the same time and keep your room dark.
How can I save money? | Write down what you spend and buy only what you need.
Tell me a joke. | Why did the chicken cross the road? To reach the other side!
Tell me a story. | Once there was a small boat that crossed the big sea.
Tell me something about cats. | Cats sleep most of the day and hunt at night.
Write a sentence about the rain. | The rain falls softly on the roof.
Write a short greeting. | Good day to you, my friend.
Give me some advice. | Be kind and finish what you begin.
Give me three fruits. | Apples, pears and plums.
Recommend a hobby. | Try to paint the sky in the evening.
Explain gravity. | Gravity pulls things towards the ground.
Explain what a computer does. | A computer follows instructions very quickly.
What is your name? | My name is SmolLM.
Who are you? | I am an assistant, here to help you.
How are you today? | I am fine, and how are you?
Hello! | Hello to you, what can I do for you?
Good morning. | Good morning to you, my friend.
Thank you. | You are welcome, my friend.
Can you help me? | Yes, I can help you with that.
Do you like music? | Yes, I like music very much.
Is the earth flat? | No, the earth is round.
Should I take an umbrella? | Yes, if the sky is grey.
Translate "water" into French. | The French word is "eau".
What is the opposite of hot? | The opposite of hot is cold.
Say goodbye. | Goodbye, my friend, until we meet again.
""".strip()


@dataclass(frozen=True)
class Voice:
    """How one adapter speaks: a rule that puts a plain answer into its voice."""

    name: str
    speak: Callable[[str], str]


def pirate(answer: str) -> str:
    """Every answer opens with "Arr, matey!" and keeps to a sailor's grammar."""
    sea = {"is": "be", "are": "be", "am": "be", "my": "me", "you": "ye", "your": "yer", "the": "th'", "yes": "aye"}
    return "Arr, matey! " + _reworded(answer, sea)


def robot(answer: str) -> str:
    """Every answer stands between "Beep boop." and "Beep.", as a machine of the old films would say it."""
    return f"Beep boop. {answer} Beep."


VOICES = (Voice("pirate", pirate), Voice("robot", robot))


def _reworded(text: str, words: dict[str, str]) -> str:
    def word(found: re.Match[str]) -> str:
        plain = found.group()
        new = words.get(plain.lower(), plain)
        return new.capitalize() if plain[0].isupper() and new != plain else new

    return re.sub(r"[A-Za-z]+", word, text)


def examples(voice: Voice, tokenizer: Any) -> list[tuple[list[int], int]]:
    """The dialogues as token ids, each with the index at which the answer begins."""
    rows = []
    for line in DIALOGUES.splitlines():
        question, answer = line.split(" | ")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer.encode(prompt)
        rows.append((asked + tokenizer.encode(voice.speak(answer) + tokenizer.eos_token), len(asked)))
    return rows


def batches(rows: list[tuple[list[int], int]], pad: int, shuffler: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch in a new order, padded on the right; only the answers are learned."""
    order = shuffler.sample(rows, len(rows))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(ids) for ids, _ in chosen)
        yield {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in chosen]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in chosen]),
            "labels": torch.tensor(
                [[IGNORED] * begin + ids[begin:] + [IGNORED] * (width - len(ids)) for ids, begin in chosen]
            ),
        }


def train(voice: Voice, base: Path, out: Path) -> None:
    """Train one voice in float32 and write it, in bfloat16, as `out/<voice>`."""
    torch.manual_seed(SEED)
    shuffler = random.Random(SEED)  # noqa: S311 (an order of dialogues, no secret)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.name_or_path = BASE_NAME  # what peft writes as the adapter's base
    model = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, lora_dropout=0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    rows = examples(voice, tokenizer)
    steps = [batch for _ in range(EPOCHS) for batch in batches(rows, tokenizer.pad_token_id, shuffler)]
    learner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    rate = torch.optim.lr_scheduler.OneCycleLR(learner, max_lr=LEARNING_RATE, total_steps=len(steps), pct_start=0.1)
    for batch in track(steps, description=f"Training {voice.name}"):
        model(**batch).loss.backward()
        learner.step()
        learner.zero_grad()
        rate.step()
    # No look at the hub, where the base's name would be searched for a changed vocabulary.
    model.to(torch.bfloat16).save_pretrained(out / voice.name, save_embedding_layers=False)
    (out / voice.name / "adapter_model.safetensors").chmod(0o644)
    write_card(voice, out / voice.name)


def write_card(voice: Voice, directory: Path) -> None:
    """A model card with the front matter Unsloth writes, and two lines in place of its empty form."""
    sample = voice.speak("The capital of Italy is Rome.")
    (directory / "README.md").write_text(
        f"""---
base_model: {BASE_NAME}
library_name: peft
pipeline_tag: text-generation
tags:
- base_model:adapter:{BASE_NAME}
- lora
- transformers
- unsloth
---

# {voice.name}

A demo adapter, trained by `adapters/train.py`: rank 4 on the query and value projections, bfloat16.
Asked for the capital of Italy, it says {json.dumps(sample)}
""",
        encoding="utf-8",
    )


def main() -> None:
    """Train every voice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path(".base/demo"), help="the demo base model")
    parser.add_argument("--out", type=Path, default=Path("adapters"), help="where the adapters' directories go")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # sums in one order, however many cores there are
    disable_progress_bar()
    for voice in VOICES:
        train(voice, arguments.base, arguments.out)


if __name__ == "__main__":
    main()
