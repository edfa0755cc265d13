"""The real engine: one vLLM `AsyncLLM` with LoRA on.

With `openai_layer` beside it, the only file that knows vLLM's serving internals; written against vLLM 0.32.
`Llm.generate` lies below all handlers, so what is done there holds for every route.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import os
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from prometheus_client import REGISTRY, generate_latest
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from service.adapter.spec import Problem, ProblemCode
from service.engine import arguments, plugin
from service.engine.openai_layer import OPERATIONS, OpenAILayer, current
from service.engine.port import Call, EngineAdapter, EngineLimits, Operation, Proof, Reply
from service.errors import ConfigurationError, EngineDead, NotFinite, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from vllm.outputs import RequestOutput

    from service.engine.sizing import Sizing
    from service.settings import Settings

log = structlog.get_logger(__name__)

STOP_SECONDS = 15.0
"""What the engine's processes get to end by themselves before they are killed."""

CANARY_TOKENS = 4
CANARY_SALT = "loradock-canary"
"""Keeps the canary's blocks out of every client's prefix cache."""

REFUSED = Problem(
    ProblemCode.WEIGHTS_INVALID,
    "The engine could not load the adapter, though its files look right.",
    "adapter_model.safetensors",
    "The service's log has the engine's own words.",
)


class Llm(AsyncLLM):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's engine client, metering what passes below the handlers."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """One prompt's outputs; the handlers call this once a prompt and merge by index themselves."""
        call = current.get()
        if call and call.adapter and call.adapter.stop_token_ids and not sampling_params.ignore_eos:
            sampling_params = _also_stopping_at(sampling_params, call.adapter.stop_token_ids)
        outputs: AsyncGenerator[RequestOutput, None] = super().generate(prompt, sampling_params, request_id, **kwargs)
        return _metered(outputs, call, sampling_params.output_kind) if call else outputs


class VllmEngine:
    """See `service.engine.port.Engine`."""

    operations: Sequence[Operation] = OPERATIONS

    def __init__(self, settings: Settings, model: Path, served: str, sizing: Sizing, targets: list[str]) -> None:
        """Take the base's directory, its public name and the last names of the modules LoRA may adapt.

        Raises ConfigurationError when an argument can't be had; nothing is started yet.
        """
        arguments.prepare_environment(settings.log_level)
        self._args = arguments.parse(settings, model, served, sizing, targets)
        self._served = served
        self._budget = settings.token_budget
        self._ids = itertools.count(1)
        self._base_canary: list[float] = []
        self._stopping = False

    async def start(self) -> None:
        """Bring up the engine's processes and the handlers. Raises ConfigurationError when it won't start."""
        engine_args = await asyncio.to_thread(arguments.cap_batch, self._args, self._budget)
        config = await asyncio.to_thread(engine_args.create_engine_config, UsageContext.OPENAI_API_SERVER)
        try:
            self._llm = await asyncio.to_thread(Llm.from_vllm_config, config)
        except RuntimeError as error:
            raise ConfigurationError("The engine did not start; its own log above says why.") from error
        await self._demand_guards()
        self._layer = OpenAILayer(self._llm, self._args, self._served)
        await self._layer.wire()
        self._base_canary = await self._canary(None)

    async def stop(self) -> None:
        """End the engine's processes; what still runs is aborted."""
        self._stopping = True
        if not hasattr(self, "_llm"):
            for child in multiprocessing.active_children():
                child.kill()
            return
        for process in self._llm.engine_core.resources.engine_manager.processes:
            with suppress(ProcessLookupError):
                os.kill(cast("int", process.pid), plugin.END)
        await asyncio.to_thread(self._llm.shutdown, STOP_SECONDS)
        del self._llm

    @property
    def limits(self) -> EngineLimits:
        """As vLLM resolved them."""
        config = self._llm.vllm_config
        return EngineLimits(
            max_lora_rank=config.lora_config.max_lora_rank,
            max_loras=config.lora_config.max_loras,
            max_cpu_loras=config.lora_config.max_cpu_loras,
            max_model_len=config.model_config.max_model_len,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
        )

    async def check(self) -> None:
        """Raise EngineDead once vLLM has given up."""
        if self._stopping or not hasattr(self, "_llm") or self._llm.errored:
            raise EngineDead

    async def load(self, adapter: EngineAdapter) -> None:
        """Read it into memory and a slot."""
        await self.check()
        request = LoRARequest(adapter.name, next(self._ids), str(adapter.path))
        try:
            await self._llm.add_lora(request)
            await self._layer.admit(adapter, request)
        except EngineDeadError:
            raise EngineDead from None
        except Exception as error:
            # A failed load can leave its slot marked as filled; the id must be removed and never come back.
            await self._llm.remove_lora(request.lora_int_id)
            log.warning("engine_refused_adapter", adapter=adapter.name, error=str(error))
            raise Rejected([REFUSED]) from error

    async def unload(self, adapter: EngineAdapter) -> None:
        """Free its slot and its memory."""
        if request := self._layer.dismiss(adapter.name):
            await self.check()
            await self._llm.remove_lora(request.lora_int_id)

    async def prove(self, adapter: EngineAdapter) -> Proof:
        """Count the modules that arrived in its slot, then let it speak a few tokens."""
        await self.check()
        request = self._layer.models.lora_requests[adapter.name]
        counts = await self._llm.collective_rpc("loradock_modules", args=(request.lora_int_id,))
        spoken = await self._canary(request)
        return Proof(
            modules=min(counts),
            finite=all(map(math.isfinite, spoken)),
            differs=spoken != self._base_canary,
        )

    async def resident(self) -> Mapping[str, str]:
        """As the first worker has it; all workers hold the same adapters."""
        await self.check()
        (places, *_) = await self._llm.collective_rpc("loradock_resident")
        return {
            name: places[request.lora_int_id]
            for name, request in self._layer.models.lora_requests.items()
            if request.lora_int_id in places
        }

    async def run(self, operation: str, call: Call) -> Reply:
        """Let vLLM's handler for the operation answer."""
        await self.check()
        return await self._layer.run(operation, call)

    def metrics(self) -> bytes:
        """The series vLLM registers with prometheus-client's default registry."""
        return generate_latest(REGISTRY)

    async def _demand_guards(self) -> None:
        for guards in await self._llm.collective_rpc("loradock_guards"):
            if missing := [name for name, held in guards.items() if not held]:
                raise ConfigurationError(
                    f"The engine runs without {', '.join(missing)}; is loradock's plugin missing from VLLM_PLUGINS?"
                )

    async def _canary(self, request: LoRARequest | None) -> list[float]:
        """Log-probabilities of a short greedy answer, prompt included."""
        prompt = tokens_input(self._llm.renderer.get_tokenizer().encode("The"), cache_salt=CANARY_SALT)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=CANARY_TOKENS,
            logprobs=1,
            prompt_logprobs=1,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"canary-{request.lora_name if request else 'base'}-{time.monotonic_ns()}"
        async for output in self._llm.generate(prompt, params, name, lora_request=request):
            final = output
        steps = [*filter(None, final.prompt_logprobs or ()), *(final.outputs[0].logprobs or ())]
        return [entry.logprob for step in steps for entry in step.values()]


async def _metered(
    outputs: AsyncGenerator[RequestOutput, None], call: Call, kind: RequestOutputKind
) -> AsyncGenerator[RequestOutput, None]:
    """Pass the outputs on and note what they took. Raises NotFinite when the engine met a NaN on the way."""
    usage, spoken = call.usage, 0
    first = True
    async with aclosing(outputs):
        async for output in outputs:
            if first:
                usage.prompt_tokens += len(output.prompt_token_ids or ())
                first = False
            if output.metrics is not None:
                if usage.time_to_first_token is None:
                    usage.time_to_first_token = output.metrics.first_token_latency
                if output.metrics.is_corrupted:
                    usage.not_finite = True
                    raise NotFinite
            said = sum(len(choice.token_ids) for choice in output.outputs)
            usage.completion_tokens += said if kind is RequestOutputKind.DELTA else said - spoken
            spoken = said
            yield output


def _also_stopping_at(params: SamplingParams, token_ids: Sequence[int]) -> SamplingParams:
    params = params.clone()
    params.stop_token_ids = sorted({*(params.stop_token_ids or ()), *token_ids})
    # What the scheduler reads; vLLM fills it from stop_token_ids only when the parameters are made.
    params._all_stop_token_ids.update(token_ids)  # noqa: SLF001
    return params
