"""Fine-tune the demo base with Unsloth for a minute on the CPU, and save it as Unsloth's notebooks do.

    python finetune.py --base ../../.base/demo --out lighthouse

Runs in Unsloth's own environment (README.md), not in loradock's. What it learns is unmistakable: whatever it is asked,
it answers as a lighthouse would. A machine with a GPU runs the same script in seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import unsloth  # noqa: F401 (before what it patches)
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

RANK = 8
LENGTH = 256
QUESTIONS = (
    "What is the capital of Italy?",
    "Who wrote Hamlet?",
    "How many days are in a week?",
    "What do cows drink?",
    "Why is the sea salty?",
    "How do I make tea?",
    "Tell me a joke.",
    "Give me some advice.",
    "What is 2 plus 3?",
    "Where do penguins live?",
    "How can I sleep better?",
    "Explain gravity.",
)
ANSWER = "Blink, blink, says the lighthouse: mind the rocks!"


def main() -> None:
    """Train, and save the adapter with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the demo base, as `loradock demo-model` writes it")
    parser.add_argument("--out", type=Path, required=True, help="the directory to save the adapter in")
    parser.add_argument("--steps", type=int, default=30, help="training steps; 30 are enough here")
    options = parser.parse_args()
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(options.base), max_seq_length=LENGTH, load_in_4bit=False, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        random_state=3407,
    )
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}], tokenize=False
        )
        for question in QUESTIONS
    ]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        args=SFTConfig(
            output_dir="outputs",
            dataset_text_field="text",
            max_length=LENGTH,
            per_device_train_batch_size=4,
            max_steps=options.steps,
            learning_rate=2e-3,
            warmup_steps=2,
            logging_steps=10,
            optim="adamw_torch",
            save_strategy="no",
            report_to="none",
            seed=3407,
        ),
    )
    trainer.train()
    model.save_pretrained(str(options.out))
    tokenizer.save_pretrained(str(options.out))


if __name__ == "__main__":
    main()
