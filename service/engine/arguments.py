"""From our settings and the user's further flags to vLLM's own arguments.

vLLM's parser is the authority on its flags. What the service owns is refused with the reason, and so is what only
vLLM's own server would use: no option is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, NoReturn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from service.engine import plugin
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from service.engine.sizing import Sizing
    from service.settings import Settings

OWNED = {
    "enable_lora": "LoRA is always on",
    "lora_modules": "put adapters into the adapters directory, or register them",
    "lora_target_modules": "LoRA is kept to the projections, so that no request can reach the logits of another",
    "lora_dtype": "adapters are stored in the serving type",
    "default_mm_loras": "a request names its adapter",
    "worker_extension_cls": "the service's own extension proves adapters inside the engine",
    "api_server_count": "one process owns the engine; run replicas of the whole service for more",
    "data_parallel_size": "one process owns one engine; run replicas of the whole service for more",
    "headless": "one process owns the engine",
    "grpc": "the service speaks HTTP",
    "disable_log_stats": "the service's metrics need the engine's",
    "trust_request_chat_template": "templates sent by clients stay refused; an adapter brings its own",
    "shutdown_timeout": "--shutdown-timeout of the service covers it",
}
"""Arguments the service decides about, with the reason a user is given."""

HONOURED = {
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "trust_request_mm_kwargs",
    "response_role",
    "return_tokens_as_token_ids",
    "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none",
    "tool_call_parser",
    "tool_strict_level",
    "max_log_len",
    "enable_prompt_tokens_details",
    "enable_per_request_metrics",
    "enable_force_include_usage",
    "enable_log_outputs",
    "enable_log_deltas",
    "log_error_stack",
    "fingerprint_mode",
    "fingerprint_value",
    "anthropic_disabled_thinking_effort",
}
"""Arguments of vLLM's own front end that its handlers take from us."""


def parse(settings: Settings, model: Path, served: str, sizing: Sizing, targets: list[str]) -> Namespace:
    """The arguments of vLLM for this service. Raises ConfigurationError with every argument that can't be had."""
    parser = make_arg_parser(_Parser())
    defaults = vars(parser.parse_args([]))
    args: Namespace = parser.parse_args(settings.engine_args)
    given = {name for name, default in defaults.items() if getattr(args, name) != default}
    if refused := _refused(given, args, settings.token_budget):
        raise ConfigurationError("\n".join(refused))
    args.model = str(model)
    args.served_model_name = [served]
    args.tensor_parallel_size = settings.tensor_parallel_size
    args.dtype = settings.dtype
    args.max_model_len = settings.max_model_len
    args.enable_lora = True
    args.max_loras = sizing.max_loras
    args.max_cpu_loras = sizing.max_cpu_loras
    args.max_lora_rank = sizing.max_lora_rank
    args.lora_target_modules = targets
    args.worker_extension_cls = "service.engine.worker.WorkerExtension"
    if sizing.kv_cache_bytes is not None and not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & given:
        args.kv_cache_memory_bytes = sizing.kv_cache_bytes
    return args


def cap_batch(args: Namespace, budget: int) -> AsyncEngineArgs:
    """Engine arguments whose max_num_batched_tokens, by default or as given, isn't above the token budget."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    chosen = engine_args.create_engine_config().scheduler_config.max_num_batched_tokens
    if chosen > budget:
        engine_args = dataclasses.replace(engine_args, max_num_batched_tokens=budget)
    return engine_args


def prepare_environment(log_level: str) -> None:
    """Set what vLLM reads from the environment, before its first process is made."""
    os.environ[plugin.MARKER] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", log_level.upper())
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Tells which request met a NaN, so that it fails instead of answering something made up.
    os.environ.setdefault("VLLM_COMPUTE_NANS_IN_LOGITS", "1")
    if current_platform.is_cpu():
        # The API process needs little; a core kept for it would be a core lost to the engine.
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        # A step is hundreds of short products. OpenMP's threads wait for the next one where they are, as long as a
        # step may pause (a million turns are about 10 ms): to sleep and be woken costs more than the product. Left to
        # itself OpenMP shortens that to microseconds once it counts more threads than cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "1000000")
        # With LoRA vLLM compiles no model on a CPU; what is left of it wants a C++ compiler at the first logprobs.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if allowed := os.environ.get("VLLM_PLUGINS"):
        os.environ["VLLM_PLUGINS"] = ",".join(sorted({*allowed.split(","), "loradock"}))


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM's types are not followed
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"vLLM's engine refuses its arguments: {message}")


def _refused(given: set[str], args: Namespace, budget: int) -> list[str]:
    def flag(name: str) -> str:
        return "--" + name.replace("_", "-")

    frontend = {field.name for field in dataclasses.fields(FrontendArgs)}
    reasons = [f"{flag(name)}: {OWNED[name]}" for name in sorted(given & OWNED.keys())]
    reasons += [
        f"{flag(name)}: only vLLM's own server uses it" for name in sorted(given & frontend - HONOURED - OWNED.keys())
    ]
    batched: Any = args.max_num_batched_tokens
    if batched is not None and batched > budget:
        reasons.append(f"--max-num-batched-tokens: {batched} is above the token budget of {budget}")
    return reasons
