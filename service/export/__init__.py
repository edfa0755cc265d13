"""Unsloth's output to complete Hugging Face directories."""
