"""loradock: many LoRA adapters beside one base model, in front of one vLLM engine."""

__version__ = "0.1.0"
