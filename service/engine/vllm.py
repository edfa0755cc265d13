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
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from prometheus_client import REGISTRY, generate_latest
from vllm.envs import enable_envs_cache
from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from service.adapter.spec import Problem, ProblemCode
from service.engine import arguments, plugin
from service.engine.ledger import Ledger
from service.engine.openai_layer import OPERATIONS, OpenAILayer
from service.engine.port import Call, EngineAdapter, EngineLimits, Operation, Proof, Reply
from service.engine.work import Work, current
from service.errors import ConfigurationError, EngineDead, LoradockError, NotFinite, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from vllm.outputs import RequestOutput

    from service.engine.port import Gate, Pass, Usage
    from service.engine.sizing import Sizing
    from service.settings import Settings

log = structlog.get_logger(__name__)

STOP_SECONDS = 15.0
"""What the engine's processes get to end by themselves before they are killed."""

READ_POLL_SECONDS = 0.02

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
    """vLLM's engine client behind our gate: below all handlers, so that every route obeys and is metered."""

    gate: Gate

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Turn a request away before its answer is begun. Raises QueueFull.

        Handlers ask without an id; vLLM asks again, with one, for what has passed the gate already.
        """
        if request_id is None:
            self.gate.check()
        super().check_admission(n, request_id)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """One prompt's outputs; the handlers call this once a prompt and merge by index themselves."""
        work = current.get()
        stops = work.adapter.stop_token_ids if work.adapter else ()
        if stops and not sampling_params.ignore_eos:
            sampling_params = _also_stopping_at(sampling_params, stops)
        tokens = extract_prompt_len(self.model_config, prompt) * sampling_params.n
        entrance = self.gate.admit(work.lane, tokens, sampling_params.n, work)
        ended = asyncio.Event()
        outputs = self._outputs(work, entrance, ended, prompt, sampling_params, request_id, **kwargs)
        return work.add(outputs, ended)

    async def _outputs(
        self,
        work: Work,
        entrance: AbstractAsyncContextManager[Pass],
        ended: asyncio.Event,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        **kwargs: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Enter the engine, hand its outputs out and note what they took. Raises NotFinite and TimedOut.

        Stands in the place of vLLM's own generate(), which is no more than this loop: one generator a token less.
        """
        async with AsyncExitStack() as stack:
            stack.callback(ended.set)
            async with work.deadline():
                admitted = await stack.enter_async_context(entrance)
                collector = await self.add_request(request_id, prompt, params, **kwargs)
            stack.callback(collector.close)
            stack.enter_context(work.alarm(collector.put))
            meter = Meter(work.usage, params.output_kind)
            finished = False
            try:
                while not finished:
                    output = collector.get_nowait() or await collector.get()
                    finished = output.finished
                    admitted.spoke(meter.read(output))
                    yield output
            except (LoradockError, VLLMError):
                raise
            except Exception as error:
                raise EngineGenerateError from error
            finally:
                if not finished:
                    await self.abort(collector.request_id, internal=True)


class VllmEngine:
    """See `service.engine.port.Engine`."""

    operations: Sequence[Operation] = OPERATIONS

    def __init__(
        self, settings: Settings, model: Path, served: str, sizing: Sizing, targets: list[str], gate: Gate
    ) -> None:
        """Take the base's directory, its public name and the last names of the modules LoRA may adapt.

        Raises ConfigurationError when an argument can't be had; nothing is started yet.
        """
        arguments.prepare_environment(settings.log_level)
        self._args = arguments.parse(settings, model, served, sizing, targets)
        self._served = served
        self._budget = settings.token_budget
        self._gate = gate
        self._timeout = settings.request_timeout
        self._ids = itertools.count(1)
        self._base_canary: list[float] = []
        self._stopping = False

    async def start(self) -> None:
        """Bring up the engine's processes and the handlers. Raises ConfigurationError when it won't start."""
        engine_args = await asyncio.to_thread(arguments.cap_batch, self._args, self._budget)
        config = await asyncio.to_thread(engine_args.create_engine_config, UsageContext.OPENAI_API_SERVER)
        batch = config.scheduler_config.max_num_batched_tokens
        log.info(
            "chosen", setting="max_num_batched_tokens", value=f"{batch}, within the token budget of {self._budget}"
        )
        try:
            self._llm = await asyncio.to_thread(Llm.from_vllm_config, config, stat_loggers=[Ledger])
        except RuntimeError as error:
            raise ConfigurationError("The engine did not start; its own log above says why.") from error
        self._llm.gate = self._gate
        if current_platform.is_cpu():
            self._give_workers_way()
        await self._demand_guards()
        self._layer = OpenAILayer(self._llm, self._args, self._served)
        await self._layer.wire()
        self._base_canary = await self._canary(None, None)
        # Some are read for every token; what serve sets is set by now.
        enable_envs_cache()

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
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_model_len=config.model_config.max_model_len,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
        )

    async def check(self) -> None:
        """Raise EngineDead once vLLM has given up."""
        if self._stopping or not hasattr(self, "_llm") or self._llm.errored:
            raise EngineDead

    async def load(self, adapter: EngineAdapter) -> None:
        """Read it into the engine's memory; a slot is taken when its first request runs.

        vLLM's own add_lora would read inside the engine's loop, and every running stream would wait.
        """
        await self.check()
        request = LoRARequest(adapter.name, next(self._ids), str(adapter.path))
        try:
            await asyncio.to_thread(_warm, adapter.path)
            await self._read_in(request)
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
        spoken = await self._canary(adapter, request)
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
        return await self._layer.run(operation, Work(call, self._timeout))

    def metrics(self) -> bytes:
        """The series vLLM registers with prometheus-client's default registry."""
        for series in self._llm.logger_manager.stat_loggers if hasattr(self, "_llm") else ():
            if isinstance(series, Ledger):
                series.write()
        return generate_latest(REGISTRY)

    async def _read_in(self, request: LoRARequest) -> None:
        names = (request.lora_int_id, request.lora_name, request.lora_path)
        await self._llm.collective_rpc("loradock_read", args=names)
        waiting = True
        while waiting:
            await asyncio.sleep(READ_POLL_SECONDS)
            answers = await self._llm.collective_rpc("loradock_register", args=(request.lora_int_id,))
            if refusals := [answer for answer in answers if isinstance(answer, str)]:
                raise ValueError(refusals[0])
            waiting = not all(answers)

    def _give_workers_way(self) -> None:
        """The scheduler waits for its workers in a busy loop on the cores they compute on; there it comes second."""
        for process in self._llm.engine_core.resources.engine_manager.processes:
            os.setpriority(os.PRIO_PROCESS, cast("int", process.pid), plugin.LEAST_URGENT)

    async def _demand_guards(self) -> None:
        for guards in await self._llm.collective_rpc("loradock_guards"):
            if missing := [name for name, held in guards.items() if not held]:
                raise ConfigurationError(
                    f"The engine runs without {', '.join(missing)}; is loradock's plugin missing from VLLM_PLUGINS?"
                )

    async def _canary(self, adapter: EngineAdapter | None, request: LoRARequest | None) -> list[float]:
        """Log-probabilities of a short greedy answer, prompt included. It waits at the gate like everybody else."""
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
        current.set(Work(Call(None, adapter), None))
        async for output in self._llm.generate(prompt, params, name, lora_request=request):
            final = output
        steps = [*filter(None, final.prompt_logprobs or ()), *(final.outputs[0].logprobs or ())]
        return [entry.logprob for step in steps for entry in step.values()]


class Meter:
    """Counts one prompt's tokens, whichever way its outputs repeat them."""

    def __init__(self, usage: Usage, kind: RequestOutputKind) -> None:
        self._usage = usage
        self._deltas = kind is RequestOutputKind.DELTA
        self._spoken = 0
        self._first = True

    def read(self, output: RequestOutput) -> int:
        """Note one output; how many tokens it adds. Raises NotFinite when the engine met a NaN on the way."""
        if self._first:
            self._read_first(output)
        if output.metrics.is_corrupted:
            self._usage.not_finite = True
            raise NotFinite
        new = 0
        for choice in output.outputs:
            new += len(choice.token_ids)
        if not self._deltas:
            new, self._spoken = new - self._spoken, new
        self._usage.completion_tokens += new
        return new

    def _read_first(self, output: RequestOutput) -> None:
        self._first = False
        self._usage.prompt_tokens += len(output.prompt_token_ids or ())
        if self._usage.time_to_first_token is None:
            self._usage.time_to_first_token = output.metrics.first_token_latency


def _warm(directory: Path) -> None:
    """Bring the weights into the page cache: a worker that had to wait for the disk would hold its interpreter."""
    with (directory / "adapter_model.safetensors").open("rb", buffering=0) as file:
        chunk = bytearray(1 << 20)
        while file.readinto(chunk):
            pass


def _also_stopping_at(params: SamplingParams, token_ids: Sequence[int]) -> SamplingParams:
    params = params.clone()
    params.stop_token_ids = sorted({*(params.stop_token_ids or ()), *token_ids})
    # What the scheduler reads; vLLM fills it from stop_token_ids only when the parameters are made.
    params._all_stop_token_ids.update(token_ids)  # noqa: SLF001
    return params
