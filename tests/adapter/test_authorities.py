"""Our verdict against those of the engine's loader and of PEFT: what either refuses, we refuse.

Where we refuse what they accept, the code is among `STRICTER`, which says why.
"""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from adapter.defects import DEFECTS, MAX_RANK, Defect
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import HIDDEN, RANK, VOCABULARY, write_adapter

from service.adapter.config import parse_config
from service.adapter.inspection import inspect
from service.adapter.serving_copy import write_serving_copy
from service.adapter.spec import ProblemCode, codes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.adapter.base import Base

pytestmark = pytest.mark.engine

STRICTER = {
    ProblemCode.CONFIG_MISSING: "the engine finds no adapter, which says nothing of what is there instead",
    ProblemCode.CONFIG_INVALID: "texts, fractions, negative and infinite numbers pass for ranks and alphas; a regular "
    "expression that never ends stops the engine; a broken tokenizer or template is met by the first chat",
    ProblemCode.NOT_LORA: "the engine doesn't read peft_type and serves another method's matrices as LoRA",
    ProblemCode.UNSUPPORTED_FEATURE: "fields the engine doesn't know (task_type, KaSA, single tokens, full modules)",
    ProblemCode.RANK_MISMATCH: "the engine scales with the configured rank, whatever the tensors have",
    ProblemCode.PAIR_MISSING: "the engine's loader doesn't notice; copying the adapter into a slot fails later",
    ProblemCode.SHAPE_MISMATCH: "the engine copies smaller matrices into a corner of its own",
    ProblemCode.UNKNOWN_MODULE: "the engine ignores modules whose last part it knows and whose path it doesn't",
    ProblemCode.BASE_MISMATCH: "the engine doesn't read base_model_name_or_path",
    ProblemCode.NOT_FINITE: "the engine doesn't look at numbers",
    ProblemCode.OVERFLOW: "the engine doesn't look at numbers",
    ProblemCode.NO_EFFECT: "the engine serves an adapter without effect as the base",
    ProblemCode.VOCABULARY_MISMATCH: "the engine doesn't read an adapter's tokenizer",
    ProblemCode.WEIGHTS_DTYPE: "the engine casts integers to its own type",
    ProblemCode.WEIGHTS_PICKLE: "the engine opens pickles",
    ProblemCode.PATH_FORBIDDEN: "the engine follows links out of the directory",
    ProblemCode.TOO_LARGE: "the engine reads whatever there is",
}


def _is_null(value: Any) -> bool:
    return value is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_given(value: Any) -> bool:
    return value is not None


MILDER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank_pattern": (_is_null, "null is an empty table to the engine and trips PEFT; the serving copy's is empty"),
    "alpha_pattern": (_is_null, "as above"),
    "target_modules": (_is_text, "a stranger's regular expression is not run; the tensors say what was trained"),
    "exclude_modules": (_is_text, "as above"),
    "layers_pattern": (_is_given, "as above"),
}
"""Fields with what PEFT alone refuses in them and we don't, and why."""
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
many = settings(max_examples=150)


def load_as_the_engine_does(directory: Path, max_rank: int = MAX_RANK) -> Any:
    """What the engine's worker does with an adapter before it copies it anywhere. Raises whatever it raises."""
    import torch
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(str(directory), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=max_rank))
    return LoRAModel.from_local_checkpoint(
        str(directory), LLAMA, helper, lora_model_id=1, device="cpu", dtype=torch.bfloat16
    )


@pytest.fixture(scope="module")
def model() -> Any:
    """A Llama with the tiny base's one layer of attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config)


def load_as_peft_does(directory: Path, model: Any) -> Any:
    """PEFT's own loading onto a model, which is left as it was. Raises whatever it raises."""
    from copy import deepcopy

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(deepcopy(model), str(directory))


def refuses(load: Any, *arguments: Any) -> str:
    """The authority's words when it refuses; empty when it doesn't."""
    try:
        load(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever it raises is a refusal)
        return f"{type(error).__name__}: {error}"
    return ""


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text(max_size=4)
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "r": st.sampled_from([RANK, 1, 64, 0, -1, None, "4", 4.0, True]) | scalars,
        "lora_alpha": st.sampled_from([8, 0, -8, 0.5, None, "8", float("inf")]) | scalars,
        "target_modules": st.sampled_from(
            [["q_proj"], [], None, "q_proj", ".*_proj", "[", ["nothing"], 5, "all-linear"]
        ),
        "rank_pattern": st.sampled_from(
            [{}, None, {"q_proj": RANK}, {"q_proj": 64}, {"q_proj": 0}, {"x": "y"}, [], {"(": 4}]
        ),
        "alpha_pattern": st.sampled_from([{}, None, {"q_proj": 3}, {"q_proj": 0.5}, {"q_proj": "3"}, {"[": 4}, 7]),
        "modules_to_save": st.sampled_from([None, [], ["embed_tokens"], ["classifier"], ["nothing"], "lm_head"]),
        "bias": st.sampled_from(["none", "all", "lora_only", None, "some"]),
        "use_rslora": st.sampled_from([True, False, None, "yes"]),
        "use_dora": st.sampled_from([True, False, None]),
        "lora_bias": st.sampled_from([True, False]),
        "init_lora_weights": st.sampled_from(
            [True, False, None, "gaussian", "eva", "pissa", "olora", "mystery", "PiSSA", 3]
        ),
        "loftq_config": st.sampled_from([{}, None]),
        "alora_invocation_tokens": st.sampled_from([None, [], [1, 2]]),
        "layer_replication": st.sampled_from([None, [[0, 1]]]),
        "use_bdlora": st.sampled_from([None, {}]),
        "use_qalora": st.sampled_from([False, True]),
        "layers_to_transform": st.sampled_from([None, 0, [0], [5]]),
        "layers_pattern": st.sampled_from([None, "layers", ["layers"]]),
        "exclude_modules": st.sampled_from([None, "k_proj", ["k_proj"]]),
        "target_parameters": st.sampled_from([None, [], "mlp.experts.down_proj"]),
        "trainable_token_indices": st.sampled_from([None, [], [1]]),
        "lora_dropout": st.sampled_from([0, 0.1, 1.5, "none", None]),
        "task_type": st.sampled_from(["CAUSAL_LM", None, "SEQ_CLS", "NOTHING"]),
        "peft_type": st.sampled_from(["LORA", "IA3", "lora", None, "NOTHING"]),
        "fan_in_fan_out": st.booleans(),
        "ensure_weight_tying": st.booleans(),
        "inference_mode": st.booleans(),
        "unheard_of": scalars,
    },
)


@many
@given(changes)
def test_generated_configurations(tmp_path: Path, tiny_base: Base, model: Any, changes: dict[str, Any]) -> None:
    directory = write_adapter(tmp_path / "adapter", **changes)
    report = inspect(directory, tiny_base, max_rank=MAX_RANK)
    refusals = [refuses(load_as_the_engine_does, directory), refuses(load_as_peft_does, directory, model)]
    excused = any(name in changes and milder(changes[name]) for name, (milder, _) in MILDER.items())
    if refusals[0] or (refusals[1] and not excused):
        assert not report.accepted, refusals
    else:
        assert {problem.code for problem in report.problems} <= set(STRICTER)


harmless = st.fixed_dictionaries(
    {},
    optional={
        "lora_alpha": st.sampled_from([1, 0.5, 64]),
        "use_rslora": st.booleans(),
        "rank_pattern": st.sampled_from([None, {"q_proj": RANK}, {r".*\.(q_proj|v_proj)": RANK, "nothing": 2}]),
        "alpha_pattern": st.sampled_from(
            [None, {"q_proj": 3}, {r".*\.v_proj": 0.5, "self_attn.v_proj": 9}, {r"^model.layers.\d+.*(q|v)_proj": 7}]
        ),
        "target_modules": st.sampled_from(["all-linear", r".*self_attn\.[qv]_proj", ["self_attn.q_proj", "v_proj"]]),
        "init_lora_weights": st.sampled_from([False, "gaussian", "orthogonal", "lora_ga"]),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "bias": st.just("none"),
        "modules_to_save": st.just([]),
        "base_model_name_or_path": st.sampled_from(["unsloth/TINY-base-bnb-4bit", "/content/tiny", None]),
        "unheard_of": scalars,
    },
)


@many
@given(harmless)
def test_what_we_serve_both_compute_alike(tmp_path: Path, tiny_base: Base, model: Any, changes: dict[str, Any]) -> None:
    """An accepted adapter's serving copy loads in both, with every module, and gives each the same delta."""
    directory = write_adapter(tmp_path / "adapter", **changes)
    report = inspect(directory, tiny_base, max_rank=MAX_RANK)
    assert report.accepted
    target = tmp_path / "serving"
    for old in target.iterdir() if target.exists() else ():
        old.unlink()
    copy = write_serving_copy(directory, target, tiny_base, report, "bfloat16")
    ours, _ = parse_config((directory / "adapter_config.json").read_bytes())
    loaded = load_as_the_engine_does(target)
    wrapped = load_as_peft_does(target, model)
    assert len(loaded.loras) == copy.modules
    for module, lora in loaded.loras.items():
        assert ours is not None
        assert lora.scaling == pytest.approx(ours.scale(module))
        delta = wrapped.get_submodule(f"base_model.model.{module}").get_delta_weight("default").detach().numpy()
        expected = lora.scaling * (lora.lora_b.float() @ lora.lora_a.float()).numpy()
        assert np.allclose(delta, expected, atol=1e-6)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defects(defect: Defect, synthetic_adapter: Path, tmp_path: Path) -> None:
    """Every defect that the engine lets pass is one of those we are stricter about."""
    if "path_forbidden" in defect.expected:
        pytest.skip("the engine would wait for the pipe, or follow the link")
    directory = defect.make(synthetic_adapter, tmp_path / "spoiled")
    passed = not refuses(load_as_the_engine_does, directory)
    shutil.rmtree(directory)
    if passed:
        assert defect.expected <= set(STRICTER)


def test_exports(exports: Path, smol_base: Base, tmp_path: Path) -> None:
    """What the engine refuses, we refuse; what we accept, it loads from our copy with every module."""
    for directory in sorted(path for path in exports.iterdir() if path.is_dir()):
        report = inspect(directory, smol_base, max_rank=MAX_RANK)
        if report.accepted:
            copy = write_serving_copy(directory, tmp_path / directory.name, smol_base, report, "bfloat16")
            assert len(load_as_the_engine_does(tmp_path / directory.name).loras) == copy.modules == len(report.modules)
        elif not refuses(load_as_the_engine_does, directory):
            assert set(codes(report.problems)) <= set(STRICTER), directory.name
        fields = json.loads((directory / "adapter_config.json").read_text())
        assert bool(refuses(_peft_config, directory)) is False, fields


def _peft_config(directory: Path) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(directory))
