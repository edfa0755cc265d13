"""Which proof a conversion gets: an adapter's result against PEFT's merge, a model's against its own weights."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from service.adapter.spec import ProblemCode
from service.export import reference
from service.export.complete import unlabelled
from service.export.engine_check import engine_tokens, engine_version
from service.export.refusal import refuse
from service.export.report import Comparison, Verification
from service.export.tensors import model_files, open_tensors
from service.export.verify import Weights, changed_tensors, check_changed, check_engine, compare, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from service.export.plan import Plan
    from service.export.source import Source
    from service.export.tensors import Tensors

WEIGHTS_INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


@dataclass(frozen=True, slots=True)
class Proof:
    """What is needed to prove a written directory."""

    made: Path
    dtype: str
    """bfloat16 or float16."""
    engine: bool
    """Whether vLLM is asked too."""
    stage: Callable[[str], None]
    """Told what is being done."""

    def of_merge(self, adapter: Source, base: Model, plan: Plan, *, tied: bool) -> Verification:
        """An adapter's merge: changed tensors are the targets, and PEFT's own merge gives the same."""
        self.stage("Comparing with the base")
        untied = plan.unties and not tied
        targets = set(plan.changes) | {plan.head} if untied else set(plan.changes) - ({plan.head} if tied else set())
        changed = self._changed(base.tensors)
        check_changed(changed, targets)
        self.stage("Loading transformers and PEFT")
        asked = reference.prompts(self.made)
        self.stage("Merging with PEFT")
        with base.as_directory(base.config) as directory:
            theirs, effect = reference.peft_merge(
                directory, adapter.directory, adapter.weights[0], rows=plan.rows, untied=untied, asked=asked
            )
        comparison, engine = self._compare(f"PEFT {version('peft')}'s merge", theirs, asked, effect)
        return Verification(len(changed), len(targets), comparison, engine)

    def of_model(self, source: Model, base: Tensors | None) -> Verification:
        """A whole model: transformers reads the source's own files under the result's configuration."""
        changed = None
        if base is not None:
            self.stage("Comparing with the base")
            changed = len(self._changed(base))
            if not changed:
                refuse(
                    ProblemCode.NO_EFFECT,
                    "Its weights are the base's: nothing was merged into them.",
                    "",
                    "Convert the adapter itself, which merges it.",
                )
        self.stage("Loading transformers")
        asked = reference.prompts(self.made)
        self.stage("Loading the source")
        config = json.loads((self.made / "config.json").read_text(encoding="utf-8"))
        with source.as_directory(config) as directory:
            theirs = reference.load(directory, self.dtype)
        comparison, engine = self._compare("the source's own weights", theirs, asked, None)
        return Verification(changed, None, comparison, engine)

    def _changed(self, base: Tensors) -> set[str]:
        with open_tensors(self.made, model_files(self.made)) as result:
            return changed_tensors(base, result)

    def _compare(
        self, what: str, theirs: Any, asked: list[list[int]], effect: reference.Effect | None
    ) -> tuple[Comparison, str]:
        """Two 16-bit models are in memory at once at most, or one that was widened to answer."""
        self.stage("Comparing all weights")
        weights = Weights.of(reference.load(self.made, self.dtype), reference.cast(theirs, self.dtype))
        self.stage("Answering prompts")
        expected = reference.answer(reference.cast(theirs, "float32"), asked)
        del theirs
        ours = reference.cast(reference.load(self.made, self.dtype), "float32")
        got = reference.answer(ours, asked)
        part = kept(effect, reference.prompt_logits(ours, asked)) if effect else None
        del ours
        comparison = compare(what, weights, expected, got, kept=part)
        return comparison, self._ask_engine(asked, got) if self.engine else ""

    def _ask_engine(self, asked: list[list[int]], answers: reference.Answers) -> str:
        self.stage("Starting vLLM on the result")
        tokens = engine_tokens(self.made, asked, reference.NEW_TOKENS, self.dtype)
        check_engine(answers, tokens)
        return engine_version()


@dataclass(frozen=True, slots=True)
class Model:
    """A model as a reference reads it: its own weights, and a configuration that may be mended."""

    directory: Path
    weights: tuple[str, ...]
    tensors: Tensors
    config: Mapping[str, Any]

    @contextmanager
    def as_directory(self, config: Mapping[str, Any]) -> Iterator[Path]:
        """A directory of links to the weights beside a configuration, for the time of a load."""
        with TemporaryDirectory() as name:
            view = Path(name)
            for file in self.weights:
                (view / file).symlink_to((self.directory / file).resolve())
            (view / "config.json").write_text(json.dumps(unlabelled(config)), encoding="utf-8")
            if len(self.weights) > 1:
                index = {"metadata": {}, "weight_map": dict(self._homes())}
                suffix = self.weights[0].rsplit(".", 1)[-1]
                (view / WEIGHTS_INDEX[suffix]).write_text(json.dumps(index), encoding="utf-8")
            yield view

    def _homes(self) -> Iterator[tuple[str, str]]:
        for file in self.weights:
            with open_tensors(self.directory, (file,)) as shard:
                yield from ((tensor, file) for tensor in shard.entries)
