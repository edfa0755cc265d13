"""What a conversion found, did and proved: one value for the terminal, for JSON and for the result's own directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.adapter.spec import Problem
    from service.export.refusal import Refusal

FILE = "conversion.json"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result against a reference that transformers and PEFT computed on their own."""

    reference: str
    tensors: int
    elements: int
    different: int
    """Elements of the weights that differ."""
    steps: int
    """The largest difference, in units of the last place of the result's type."""
    prompts: int
    tokens: int
    """Greedy tokens compared, over all prompts."""
    tokens_equal: int
    logits: float
    """The largest difference of any logit on the way."""
    kept: float | None = None
    """How much of the adapter's effect on the prompts' logits the merged weights have, against base + adapter: 1 is
    all of it. None where there is no adapter, or none that does anything."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that was checked after writing."""

    changed: int | None
    """Tensors that differ from the base's; None where no base was named."""
    targets: int | None
    """Tensors the adapter speaks of; None without an adapter."""
    comparison: Comparison
    engine: str = ""
    """The engine's name and version that gave the same greedy tokens; "" when it wasn't asked."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion."""

    found: str
    source: str
    """The source directory's name."""
    source_digest: str
    """SHA-256 over the source's files; of an adapter the digest the registry gives it."""
    base: str
    """The base's name; "" when none was needed."""
    base_fingerprint: str
    dtype: str
    tensors: int
    bytes: int
    weights: tuple[str, ...]
    supplied: tuple[str, ...]
    """Files that the source lacked and that are the base's."""
    notes: tuple[Refusal | Problem, ...]
    verification: Verification | None
    """None when it was asked to be left out."""
    versions: Mapping[str, str]
    """Libraries that had a part in it."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints and `conversion.json` holds."""
        verification = None if self.verification is None else asdict(self.verification)
        return {
            "converted": True,
            "found": self.found,
            "source": self.source,
            "source_digest": self.source_digest,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "dtype": self.dtype,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "weights": list(self.weights),
            "supplied": list(self.supplied),
            "notes": [note.as_dict() for note in self.notes],
            "verification": verification,
            "versions": dict(self.versions),
        }

    def as_json(self) -> str:
        """The same as text."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def card(self) -> str:
        """README.md of the result: where it comes from and how it was checked."""
        return "\n".join(
            [*self._front_matter(), f"# {self.source}, converted", "", *self._origin(), *self._proof(), ""]
        )

    def _front_matter(self) -> list[str]:
        base = [f"base_model: {json.dumps(self.base)}"] if self.base else []
        return ["---", "library_name: transformers", "pipeline_tag: text-generation", *base, "---", ""]

    def _origin(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = {
            "made from": f"{self.found} (`{self.source}`, sha256 `{self.source_digest}`)",
            "base": f"{self.base} (fingerprint `{self.base_fingerprint}`)" if self.base else "none needed",
            "weights": f"{self.tensors} tensors, {self.bytes:,} bytes, {self.dtype}",
            "taken from the base": ", ".join(self.supplied) or "nothing",
            "made with": versions,
        }
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]

    def _proof(self) -> list[str]:
        if self.verification is None:
            return ["It was not verified (`--no-verify`)."]
        compared = self.verification.comparison
        return [
            f"Verified against {compared.reference}: {compared.tokens_equal} of {compared.tokens} greedy tokens equal,",
            f"{compared.different:,} of {compared.elements:,} weights different (by at most {compared.steps} in the",
            f"last place), largest difference of a logit {compared.logits:.3g}. All figures are in `{FILE}`.",
        ]
