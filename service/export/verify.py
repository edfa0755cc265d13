"""The proof of a conversion: the written directory against what transformers and PEFT make of the same source.

Tolerances, and why they are not zero. Both sides add scale·B·A to W in float32 and round once to 16 bits, but a
product's sum may be taken in another order, which moves the last bit of float32, and once in thousands of elements
that decides which way 16 bits round: one step in the last place, never two. Logits then differ by what one such step
in a few weights does. Greedy tokens have to be equal, save where the reference itself holds two of them for equally
good within that difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from service.adapter.spec import ProblemCode
from service.export.arithmetic import rounded, row_blocks
from service.export.merge import BLOCK_BYTES
from service.export.refusal import ExportCode, Refusal, Refused
from service.export.report import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.export import reference
    from service.export.tensors import Tensors

STEPS = 1
"""Units in the last place by which a weight may differ."""
SHARE = 0.01
"""Part of all weights that may differ at all."""
LOGITS = 0.02
"""Largest difference of a logit, as a part of the largest logit there is."""


def changed_tensors(base: Tensors, result: Tensors) -> set[str]:
    """Names of the result's tensors that differ from the base's in any element, after rounding, or that are new."""
    return {name for name in result.entries if name not in base.entries or _differs(name, base, result)}


def check_changed(changed: set[str], targets: set[str]) -> None:
    """Hold the set of changed tensors to the adapter's targets. Raises Refused.

    A target whose change is smaller than the 16-bit rounding may stay as it is; all of them mustn't.
    """
    strangers = sorted(changed - targets)
    if strangers:
        raise Refused([
            Refusal(
                ExportCode.UNFAITHFUL,
                f"{len(strangers)} tensors changed that the adapter doesn't speak of: {', '.join(strangers[:3])}.",
                strangers[0],
                "This is a fault of the conversion; please report it.",
            )
        ])  # fmt: skip
    if not changed & targets:
        raise Refused([
            Refusal(
                ProblemCode.NO_EFFECT,
                "The merged weights are the base's: the adapter is untrained, or smaller than 16 bits can hold.",
                "",
                "Check that this is the adapter that was trained; an earlier save may have been taken.",
            )
        ])  # fmt: skip


@dataclass(slots=True)
class Weights:
    """A count over all tensors of two loaded models."""

    tensors: int = 0
    elements: int = 0
    different: int = 0
    steps: int = 0
    wrong: list[str] = field(default_factory=list)
    """Tensors that only one of the two has, or that differ by more than `STEPS`."""

    @classmethod
    def of(cls, ours: Any, theirs: Any) -> Weights:
        """Compare two loaded models tensor by tensor, by the names of the model's code."""
        count, expected = cls(), theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            other = expected.pop(name, None)
            if other is None or other.shape != tensor.shape:
                count.wrong.append(name)
            else:
                count.add(name, tensor, other)
        count.wrong += expected
        return count

    def add(self, name: str, tensor: Any, other: Any) -> None:
        """Count one tensor against its counterpart."""
        self.tensors += 1
        self.elements += tensor.numel()
        steps, different = last_place_steps(tensor, other.to(tensor.dtype))
        self.different += different
        self.steps = max(self.steps, steps)
        if steps > STEPS:
            self.wrong.append(name)


def last_place_steps(one: Any, other: Any) -> tuple[int, int]:
    """The largest distance of two tensors of one type in units of the last place, and how many elements differ."""
    import torch

    if torch.equal(one, other):
        return 0, 0
    if not one.is_floating_point():
        return 1 << 31, int((one != other).sum())
    width = {2: torch.int16, 4: torch.int32}[one.element_size()]
    distance = (_ordered(one.contiguous().view(width)) - _ordered(other.contiguous().view(width))).abs()
    return int(distance.max()), int((distance > 0).sum())


def _ordered(bits: Any) -> Any:
    """Floating-point bit patterns as integers that count up with the number, so that neighbours are 1 apart."""
    import torch

    wide = bits.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(bits.dtype).min - wide, wide)


def compare(
    what: str, weights: Weights, expected: reference.Answers, got: reference.Answers, *, kept: float | None
) -> Comparison:
    """The figures of a result against the reference `what`. Raises Refused, in figures, outside the tolerances."""
    largest, difference, equal = _logits(expected, got)
    comparison = Comparison(
        reference=what,
        tensors=weights.tensors,
        elements=weights.elements,
        different=weights.different,
        steps=weights.steps,
        prompts=len(expected.tokens),
        tokens=sum(map(len, expected.tokens)),
        tokens_equal=equal,
        logits=difference,
        kept=kept,
    )
    reasons = [*_weights_wrong(weights), *_answers_wrong(comparison, expected, got, largest)]
    if reasons:
        raise Refused([Refusal(ExportCode.UNFAITHFUL, f"Not what {what} makes of it: {why}.") for why in reasons])
    return comparison


def kept(effect: reference.Effect, merged: Any) -> float | None:
    """1 less the ratio of ‖merged, adapted‖ to ‖adapted, base‖ over the prompts' logits; None without any effect."""
    whole = float((effect.adapted - effect.plain).norm())
    return 1 - float((effect.adapted - merged).norm()) / whole if whole else None


def check_engine(expected: reference.Answers, tokens: Sequence[Sequence[int]]) -> None:
    """Hold an engine's greedy tokens to transformers', which computes the same in another order. Raises Refused.

    They have to be equal up to a place where transformers itself holds the engine's token for about equally good;
    what follows such a place answers another question.
    """
    wrong = list(_tokens_wrong(expected, tokens, LOGITS * max(float(logits.abs().max()) for logits in expected.logits)))
    if wrong:
        raise Refused([Refusal(ExportCode.UNFAITHFUL, f"vLLM answers otherwise: {why}.") for why in wrong])


def _logits(expected: reference.Answers, got: reference.Answers) -> tuple[float, float, int]:
    """The largest logit, the largest difference of logits, and the number of tokens that are equal.

    Logits are compared up to the first different token: from there on the two answer different questions.
    """
    largest = difference = 0.0
    equal = 0
    for theirs, ours, wanted, given in zip(expected.tokens, got.tokens, expected.logits, got.logits, strict=True):
        same = next(
            (step for step, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]), len(theirs)
        )
        equal += same
        seen = slice(0, same + 1)
        largest = max(largest, float(wanted[seen].abs().max()))
        difference = max(difference, float((wanted[seen] - given[seen]).abs().max()))
    return largest, difference, equal


def _weights_wrong(weights: Weights) -> Iterator[str]:
    if weights.wrong:
        yield f"{len(weights.wrong)} tensors differ, {weights.wrong[0]} among them, by up to {weights.steps} steps"
    if weights.different > SHARE * weights.elements:
        yield f"{weights.different:,} of {weights.elements:,} weights differ"


def _answers_wrong(
    comparison: Comparison, expected: reference.Answers, got: reference.Answers, largest: float
) -> Iterator[str]:
    if comparison.logits > LOGITS * largest:
        yield f"logits differ by up to {comparison.logits:.3g} where the largest is {largest:.3g}"
    yield from _tokens_wrong(expected, got.tokens, 2 * comparison.logits)


def _tokens_wrong(expected: reference.Answers, tokens: Sequence[Sequence[int]], margin: float) -> Iterator[str]:
    """Each prompt's first token that isn't the expected one, unless the expectation is within `margin` of it."""
    for theirs, ours, logits in zip(expected.tokens, tokens, expected.logits, strict=True):
        for step, (wanted, given) in enumerate(zip(theirs, ours, strict=True)):
            if wanted == given:
                continue
            if float(logits[step][wanted] - logits[step][given]) > margin:
                yield f"greedy token {step + 1} is {given} and should be {wanted}"
            break


def _differs(name: str, base: Tensors, result: Tensors) -> bool:
    before, after = base.entries[name], result.entries[name]
    if before.shape != after.shape:
        return True
    if not after.shape:
        return rounded(base.read(name), after.dtype).tobytes() != result.read(name).tobytes()
    row_bytes = 4 * int(np.prod(after.shape[1:], dtype=np.int64))
    return any(
        rounded(base.read_rows(name, first, count), after.dtype).tobytes()
        != result.read_rows(name, first, count).tobytes()
        for first, count in row_blocks(after.shape[0], row_bytes, BLOCK_BYTES)
    )
