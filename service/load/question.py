"""One request: who is asked, what, and for how much."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """A completion, or a chat of one turn."""

    model: str
    prompt: str
    max_tokens: int
    stream: bool = True
    ignore_eos: bool = True
    """Whether the answer has to be as long as max_tokens, whatever the model says."""
    chat: bool = False

    @property
    def path(self) -> str:
        """Where it is asked."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self) -> bytes:
        """As OpenAI's API takes it, greedy; `ignore_eos` is vLLM's and only sent where it is wanted."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}
        if self.chat:
            body["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            body["ignore_eos"] = True
        return json.dumps(body).encode()
