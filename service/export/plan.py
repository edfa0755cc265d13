"""From an adapter's names, shapes and configuration to what is done to each tensor of the base; no number is read.

Every contradiction is found here, all of them at once, so that merging itself can't fail for a reason that the
headers already knew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.adapter.modules import TRANSPOSED
from service.adapter.spec import ProblemCode
from service.export import naming
from service.export.changes import Bias, Change, Pair, Rows
from service.export.experts import WRAPPER, expert_changes, find_layer
from service.export.parts import Module, Part, take_apart
from service.export.refusal import Refusal, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.adapter.config import AdapterConfig
    from service.adapter.safetensors_header import TensorEntry

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
MATRIX = 2
SHOWN = 20
"""Reasons of one kind that are listed; an adapter for another model has hundreds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each tensor of the base that the adapter touches."""

    changes: Mapping[str, Change]
    """Name of the tensor in the base's files → what is done to it."""
    embedding: str
    """The token embedding's name in the base's files."""
    head: str
    """The output layer's name; "" when it is the embedding and stays so."""
    rows: int
    """Rows of the embedding afterwards: the vocabulary's size."""
    tied: bool
    """Whether the base uses its embedding as output layer."""

    @property
    def unties(self) -> bool:
        """Whether embedding and output layer, one tensor in the base, become two (unless they come out equal)."""
        return self.tied and bool(self.head)


def make_plan(
    config: AdapterConfig, ours: Mapping[str, TensorEntry], base: Mapping[str, TensorEntry], model_type: str
) -> Plan:
    """Match an adapter's tensors to those of the base. Raises Refused with everything that doesn't fit."""
    planner = _Planner(config, ours, base, model_type)
    modules, unknown = take_apart(ours)
    for name in unknown:
        planner.refuse(ProblemCode.UNKNOWN_MODULE, f"{name} is no tensor of a LoRA adapter.", name)
    for module in modules.values():
        planner.add(module)
    planner.check_saved_modules(modules)
    plan = planner.close()
    if planner.wrong:
        raise Refused(planner.wrong[:SHOWN])
    return plan


@dataclass(slots=True)
class _Planner:
    """Collects what is done to each tensor, and everything that is wrong on the way."""

    config: AdapterConfig
    ours: Mapping[str, TensorEntry]
    base: Mapping[str, TensorEntry]
    model_type: str
    changes: dict[str, Change] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the tensors that are replaced."""
    wrong: list[Refusal] = field(default_factory=list)

    def refuse(self, code: ProblemCode, message: str, where: str = "", remedy: str = "") -> None:
        self.wrong.append(Refusal(code, message, where, remedy))

    @property
    def embedding(self) -> str:
        return naming.embedding(self.base) or ""

    @property
    def tied(self) -> bool:
        return naming.head(self.base) is None

    def add(self, module: Module) -> None:
        """Everything that the adapter has for one module."""
        for name in module.tensors.values():
            if self.ours[name].dtype not in FLOATS:
                self.refuse(ProblemCode.WEIGHTS_DTYPE, f"{name} has the type {self.ours[name].dtype}.", name)
        experts = find_layer(_unwrapped(module.path), self.base) if Part.A in module.tensors else None
        if experts is not None and Part.B in module.tensors:
            pair = module.tensors[Part.A], module.tensors[Part.B]
            found = expert_changes(_unwrapped(module.path), pair, self.ours, experts, self.config)
            self.wrong.append(found) if isinstance(found, Refusal) else self.changes.update(found)
            return
        if set(module.tensors) - {Part.BIAS}:
            self._weight(module)
        if set(module.tensors) & {Part.BIAS, Part.B_BIAS}:
            self._bias(module)

    def _weight(self, module: Module) -> None:
        target = self._find(module, "weight")
        if target is None:
            return
        replacement = module.tensors.get(Part.WEIGHT, "")
        shape = self._shape(target, replacement)
        if shape is not None:
            self.shapes[target] = shape
            self.changes[target] = Change(replacement, self._recipe(module, shape))

    def _find(self, module: Module, kind: str) -> str | None:
        name = f"{module.path}.{kind}"
        found = naming.on_disk(name, self.base)
        if found is None and self.tied and name.endswith(naming.HEADS):
            return name
        if found is None and kind == "bias":
            self.refuse(
                ProblemCode.UNSUPPORTED_FEATURE,
                f"{module.path} has no bias in the base, so a trained one has nowhere to go.",
                "lora_bias" if Part.B_BIAS in module.tensors else "bias",
                "Serve it with PEFT, or train it without a bias.",
            )
        elif found is None:
            self.refuse(
                ProblemCode.UNKNOWN_MODULE,
                f"The base has no {module.path}.",
                next(iter(module.tensors.values())),
                "Name the base it was trained on with --model.",
            )
        return found

    def _shape(self, target: str, replacement: str) -> tuple[int, ...] | None:
        """The tensor's shape before the recipe; rows of embedding and output layer may be added or removed."""
        before = self.base[target if target in self.base else self.embedding].shape
        if not replacement:
            return before
        after = self.ours[replacement].shape
        fixed = 1 if target.endswith((*naming.EMBEDDINGS, *naming.HEADS)) else 0
        if len(after) == len(before) and after[fixed:] == before[fixed:]:
            return after
        self.refuse(
            ProblemCode.SHAPE_MISMATCH,
            f"{replacement} is {list(after)} and the base's {target} is {list(before)}.",
            replacement,
            "Name the base it was trained on with --model.",
        )
        return None

    def _recipe(self, module: Module, shape: tuple[int, ...]) -> Pair | Rows | None:
        parts = set(module.tensors) - {Part.WEIGHT, Part.BIAS}
        if parts == {Part.TOKENS}:
            return self._tokens(module, shape)
        if Part.TOKENS in parts:
            name = module.tensors[Part.TOKENS]
            self.refuse(ProblemCode.UNSUPPORTED_FEATURE, f"{name} stands beside a LoRA of the same embedding.", name)
            return None
        plain, embedding = parts & {Part.A, Part.B}, parts & {Part.EMBEDDING_A, Part.EMBEDDING_B}
        if len(plain) == 1 or len(embedding) == 1 or (plain and embedding):
            have = module.tensors[next(iter(plain or embedding))]
            self.refuse(ProblemCode.PAIR_MISSING, f"{have} has no counterpart: half of the adapter is missing.", have)
            return None
        if not plain and not embedding:
            self._check_lonely(module)
            return None
        side = (Part.EMBEDDING_A, Part.EMBEDDING_B) if embedding else (Part.A, Part.B)
        return self._pair(module, (module.tensors[side[0]], module.tensors[side[1]]), shape, embedding=bool(embedding))

    def _check_lonely(self, module: Module) -> None:
        lonely = [module.tensors[part] for part in (Part.MAGNITUDE, Part.B_BIAS) if part in module.tensors]
        if lonely:
            self.refuse(
                ProblemCode.PAIR_MISSING, f"{lonely[0]} stands alone: its lora_A and lora_B are missing.", lonely[0]
            )

    def _pair(self, module: Module, names: tuple[str, str], shape: tuple[int, ...], *, embedding: bool) -> Pair | None:
        a, b = (self.ours[name].shape for name in names)
        if len(a) != MATRIX or len(b) != MATRIX or len(shape) != MATRIX:
            self.refuse(
                ProblemCode.UNSUPPORTED_FEATURE,
                f"{module.path} is no matrix; LoRA over convolutions can't be merged here.",
                names[0],
                "Merge it with PEFT's merge_and_unload and convert what that saves.",
            )
            return None
        rank, scale = self.config.rank(module.path), self.config.scale(module.path)
        if rank is None or scale is None or (a[0], b[1]) != (rank, rank):
            self.refuse(
                ProblemCode.RANK_MISMATCH,
                f"{module.path} has rank {a[0]} (A) and {b[1]} (B); adapter_config.json says {rank}.",
                names[0],
                "The configuration belongs to another save: copy both files from one place.",
            )
            return None
        transposed = embedding or self.model_type in TRANSPOSED
        if shape != ((a[1], b[0]) if transposed else (b[0], a[1])):
            self.refuse(
                ProblemCode.SHAPE_MISMATCH,
                f"{module.path} is {list(shape)} in the base; the adapter's is {[b[0], a[1]]}.",
                names[0],
                "Name the base it was trained on with --model.",
            )
            return None
        return Pair(*names, scale, transposed, self._magnitude(module, b[0]))

    def _magnitude(self, module: Module, outputs: int) -> str:
        name = module.tensors.get(Part.MAGNITUDE, "")
        wanted = self.config.fields.get("use_dora") is True
        if bool(name) != wanted:
            self.refuse(
                ProblemCode.CONFIG_INVALID,
                f"{module.path} has {'a' if name else 'no'} magnitude and use_dora is {str(wanted).lower()}.",
                "use_dora",
                "The configuration belongs to another save: copy both files from one place.",
            )
        elif name and self.ours[name].shape != (outputs,):
            self.refuse(ProblemCode.SHAPE_MISMATCH, f"{name} has not one number for each of {outputs} outputs.", name)
        return name

    def _tokens(self, module: Module, shape: tuple[int, ...]) -> Rows | None:
        name = module.tensors[Part.TOKENS]
        tokens = _token_indices(self.config.fields.get("trainable_token_indices"), module.path)
        values = self.ours[name].shape
        sound = (
            tokens is not None and len(set(tokens)) == len(tokens) and all(0 <= token < shape[0] for token in tokens)
        )
        if tokens is None or not sound or values != (len(tokens), *shape[1:]):
            self.refuse(
                ProblemCode.SHAPE_MISMATCH,
                f"{name} is {list(values)}, which doesn't fit trainable_token_indices and {list(shape)} in the base.",
                name,
                "The configuration belongs to another save, or the base to another model.",
            )
            return None
        return Rows(name, tokens)

    def _bias(self, module: Module) -> None:
        target = self._find(module, "bias")
        if target is None:
            return
        replacement, own = module.tensors.get(Part.BIAS, ""), module.tensors.get(Part.B_BIAS, "")
        for name in filter(None, (replacement, own)):
            if self.ours[name].shape != self.base[target].shape:
                self.refuse(ProblemCode.SHAPE_MISMATCH, f"{name} has another length than the base's {target}.", name)
        scale = self.config.scale(module.path)
        self.changes[target] = Change(replacement, Bias(own, scale) if own and scale is not None else None)

    def check_saved_modules(self, modules: Mapping[str, Module]) -> None:
        """modules_to_save whose weights aren't in the file: some ways of saving drop them and keep the field."""
        for name in self.config.fields.get("modules_to_save") or ():
            ours = any(_is_called(path, name) for path in modules)
            theirs = any(_is_called(path.rpartition(".")[0], name) for path in self.base)
            if theirs and not ours:
                self.refuse(
                    ProblemCode.WEIGHTS_MISSING,
                    f"modules_to_save names {name}, which was trained, and its weights are not in the file.",
                    "modules_to_save",
                    "Save it with model.save_pretrained(DIR); save_lora keeps lora_A and lora_B only.",
                )

    def close(self) -> Plan:
        """The plan, with what follows for an embedding that is the output layer too."""
        embedding = self.embedding
        head = naming.head(self.base) or next((name for name in self.changes if name.endswith(naming.HEADS)), "")
        if self.tied and self.config.fields.get("ensure_weight_tying") and embedding in self.changes:
            # Trained as one; what the file holds for the output layer is a copy.
            self.changes.pop(head, None)
            head = ""
        elif not head and self._parts_from_head(embedding):
            head = _head_beside(embedding)
        rows = self._rows(embedding)
        if head and rows != self._rows(head):
            self.refuse(
                ProblemCode.VOCABULARY_MISMATCH,
                f"The adapter's embedding has {rows:,} rows and its output layer {self._rows(head):,}: tokens were "
                "added, and the adapter holds only one of the two.",
                embedding,
                "Train with both in modules_to_save, or save a merged model where it was trained.",
            )
        return Plan(self.changes, embedding, head, rows, self.tied)

    def _rows(self, name: str) -> int:
        if name in self.shapes:
            return self.shapes[name][0]
        return self.base[name if name in self.base else self.embedding].shape[0] if self.embedding else 0

    def _parts_from_head(self, embedding: str) -> bool:
        """Whether the embedding of a tied base was trained without its other use as output layer.

        PEFT trains single tokens in both; whole embeddings and pairs only when told to (ensure_weight_tying).
        """
        change = self.changes.get(embedding)
        return change is not None and not isinstance(change.recipe, Rows)


def _unwrapped(path: str) -> str:
    while path.endswith(WRAPPER):
        path = path.removesuffix(WRAPPER)
    return path


def _head_beside(embedding: str) -> str:
    """The output layer's name in files that call the embedding so."""
    return "language_model.lm_head.weight" if embedding.startswith("language_model.model.") else "lm_head.weight"


def _is_called(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _token_indices(value: Any, path: str) -> tuple[int, ...] | None:
    """The tokens that were trained in the module at `path`: one list for all, or a table by module."""
    if isinstance(value, dict):
        value = next((tokens for name, tokens in value.items() if _is_called(path, str(name))), None)
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        return None
    return tuple(value)
