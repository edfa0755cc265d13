"""The real engine: one vLLM `AsyncLLM`, with vLLM's own OpenAI handlers used as a library.

The only file that knows vLLM's serving internals; written against vLLM 0.32. Our registry stands in the place of
vLLM's model list: the handlers are called with the leased version's engine name and answer under the name that was
asked for. `Llm.generate` lies below all handlers, so what is done there holds for every route.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import os
import time
from contextlib import aclosing, suppress
from contextvars import ContextVar
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import structlog
from prometheus_client import REGISTRY, generate_latest
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.generate.api_router import init_generate_state
from vllm.entrypoints.launchers.cli_args import resolve_default_chat_template_kwargs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.entrypoints.serve.utils.request_logger import RequestLogger
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from service.adapter.spec import Problem, ProblemCode
from service.engine import arguments, plugin
from service.engine.port import Call, EngineAdapter, EngineLimits, Operation, Proof, Reply
from service.errors import (
    ConfigurationError,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    LoradockError,
    NotSupported,
    Rejected,
    ResourceNotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from vllm.outputs import RequestOutput

    from service.engine.sizing import Sizing
    from service.settings import Settings

log = structlog.get_logger(__name__)

OPERATIONS = (
    Operation("/v1/completions", "completions", CompletionRequest, "Complete one or more prompts"),
    Operation("/v1/chat/completions", "chat", ChatCompletionRequest, "Answer a chat"),
    Operation("/v1/responses", "responses", ResponsesRequest, "Answer through the Responses API"),
    Operation("/v1/messages", "messages", AnthropicMessagesRequest, "Answer through the Messages API"),
    Operation("/v1/messages/count_tokens", "count_tokens", AnthropicCountTokensRequest, "Count a message's tokens"),
    Operation("/tokenize", "tokenize", TokenizeRequest, "Text or chat to token ids"),
    Operation("/detokenize", "detokenize", DetokenizeRequest, "Token ids to text"),
)

TOO_LONG = {"input_tokens", "input_text"}
"""Parameters vLLM's renderer names when a prompt doesn't fit the context (vllm/renderers/params.py)."""

CANARY_TOKENS = 4
CANARY_SALT = "loradock-canary"
"""Keeps the canary's blocks out of every client's prefix cache."""

_call: ContextVar[Call | None] = ContextVar("loradock_call", default=None)
"""The request a handler is working on. Each HTTP request runs in a task, and so in a context, of its own."""


class Models(OpenAIServingModels):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's model list, filled by our registry: `lora_requests` holds what is loaded, by engine name."""

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """The name the client asked for, which is the one its answer carries."""
        call = _call.get()
        asked: str | None = call.body.model if call else None
        return asked or cast("str", super().model_name(lora_request))


class Renderer(OnlineRenderer):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's renderer with an adapter's own chat template where it has one.

    Chat, responses, messages and tokenize all pass `preprocess_chat`.
    """

    templates: Mapping[str, str]

    async def preprocess_chat(
        self, request: Any, messages: list[Any], default_template: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Render and tokenise a chat."""
        call = _call.get()
        own = self.templates.get(call.adapter.name) if call and call.adapter else None
        return await super().preprocess_chat(request, messages, own or default_template, *args, **kwargs)


class Llm(AsyncLLM):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's engine client, metering what passes below the handlers."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """One prompt's outputs; the handlers call this once a prompt and merge by index themselves."""
        call = _call.get()
        if call is None:
            return cast(
                "AsyncGenerator[RequestOutput, None]", super().generate(prompt, sampling_params, request_id, **kwargs)
            )
        if call.adapter and call.adapter.stop_token_ids and not sampling_params.ignore_eos:
            sampling_params = _also_stopping_at(sampling_params, call.adapter.stop_token_ids)
        outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
        return _metered(outputs, call, sampling_params.output_kind)


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
        self._templates: dict[str, str] = {}
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
        await self._wire_handlers()
        self._base_canary = await self._canary(None)

    async def stop(self) -> None:
        """End the engine's processes; what still runs is aborted."""
        self._stopping = True
        if not hasattr(self, "_llm"):
            for child in multiprocessing.active_children():
                child.kill()
            return
        for process in self._llm.engine_core.resources.engine_manager.processes:
            with suppress(ProcessLookupError, TypeError):
                os.kill(process.pid, plugin.END)
        await asyncio.to_thread(self._llm.shutdown, 10.0)
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
        except EngineDeadError:
            raise EngineDead from None
        except Exception as error:
            # A failed load can leave its slot marked as filled; the id must be removed and never come back.
            await self._llm.remove_lora(request.lora_int_id)
            log.warning("engine_refused_adapter", adapter=adapter.name, error=str(error))
            raise Rejected(
                [
                    Problem(
                        ProblemCode.WEIGHTS_INVALID,
                        "The engine could not load the adapter, though its files look right.",
                        "adapter_model.safetensors",
                        "The service's log has the engine's own words.",
                    )
                ]
            ) from error
        template = adapter.path / "chat_template.jinja"
        if await asyncio.to_thread(template.is_file):
            self._templates[adapter.name] = await asyncio.to_thread(template.read_text, "utf-8")
        self._models.lora_requests[adapter.name] = request

    async def unload(self, adapter: EngineAdapter) -> None:
        """Free its slot and its memory."""
        self._templates.pop(adapter.name, None)
        if request := self._models.lora_requests.pop(adapter.name, None):
            await self.check()
            await self._llm.remove_lora(request.lora_int_id)

    async def prove(self, adapter: EngineAdapter) -> Proof:
        """Count the modules that arrived in its slot, then let it speak a few tokens."""
        await self.check()
        request = self._models.lora_requests[adapter.name]
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
            for name, request in self._models.lora_requests.items()
            if request.lora_int_id in places
        }

    async def run(self, operation: str, call: Call) -> Reply:
        """Hand the request to vLLM's handler under the engine's own name for the adapter."""
        await self.check()
        # Never reset: the streams below are read by this task after we returned, in this same context.
        _call.set(call)
        name = call.adapter.name if call.adapter else self._served
        body = call.body.model_copy(update={"model": name})
        try:
            result = await self._handlers[operation](body, call.raw)
        except EngineDeadError:
            raise EngineDead from None
        except (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError) as error:
            raise _translated(error) from error
        return _reply(operation, result)

    def metrics(self) -> bytes:
        """The series vLLM registers with prometheus-client's default registry."""
        return generate_latest(REGISTRY)

    async def _demand_guards(self) -> None:
        for guards in await self._llm.collective_rpc("loradock_guards"):
            if missing := [name for name, held in guards.items() if not held]:
                raise ConfigurationError(
                    f"The engine runs without {', '.join(missing)}; is loradock's plugin missing from VLLM_PLUGINS?"
                )

    async def _wire_handlers(self) -> None:
        args, llm = self._args, self._llm
        logger = RequestLogger(max_log_len=args.max_log_len) if args.enable_log_requests else None
        template = load_chat_template(args.chat_template)
        template_kwargs = resolve_default_chat_template_kwargs(args)
        self._models = Models(llm, [BaseModelPath(name=self._served, model_path=args.model)])
        renderer = Renderer(
            llm.model_config,
            llm.renderer,
            request_logger=logger,
            chat_template=template,
            chat_template_content_format=args.chat_template_content_format,
            trust_request_mm_kwargs=args.trust_request_mm_kwargs,
            enable_auto_tools=args.enable_auto_tool_choice,
            exclude_tools_when_tool_choice_none=args.exclude_tools_when_tool_choice_none,
            tool_parser=args.tool_call_parser,
            tool_strict_level=args.tool_strict_level,
            reasoning_parser=args.structured_outputs_config.reasoning_parser,
            default_chat_template_kwargs=template_kwargs,
            log_error_stack=args.log_error_stack,
        )
        renderer.templates = self._templates
        await asyncio.to_thread(renderer.warmup)
        state = SimpleNamespace()
        state.openai_serving_models, state.online_renderer, state.tool_server = self._models, renderer, None
        tasks = await llm.get_supported_tasks()
        await init_generate_state(llm, state, args, logger, tasks, template_kwargs)
        tokenization = ServingTokenization(
            self._models,
            renderer,
            request_logger=logger,
            chat_template=template,
            chat_template_content_format=args.chat_template_content_format,
            default_chat_template_kwargs=template_kwargs,
        )
        self._handlers: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "completions": state.openai_serving_completion.create_completion,
            "chat": state.openai_serving_chat.create_chat_completion,
            "responses": state.openai_serving_responses.create_responses,
            "messages": state.anthropic_serving_messages.create_messages,
            "count_tokens": state.anthropic_serving_messages.count_tokens,
            "tokenize": tokenization.create_tokenize,
            "detokenize": tokenization.create_detokenize,
        }

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
    usage, spoken = call.usage, 0
    first = True
    async with aclosing(outputs):
        async for output in outputs:
            if first:
                usage.prompt_tokens += len(output.prompt_token_ids or ())
                first = False
            if usage.time_to_first_token is None and output.metrics is not None:
                usage.time_to_first_token = output.metrics.first_token_latency
            said = sum(len(choice.token_ids) for choice in output.outputs)
            usage.completion_tokens += said if kind is RequestOutputKind.DELTA else said - spoken
            spoken = said
            yield output


def _also_stopping_at(params: SamplingParams, token_ids: Sequence[int]) -> SamplingParams:
    params = params.clone()
    params.stop_token_ids = sorted({*(params.stop_token_ids or ()), *token_ids})
    params._all_stop_token_ids.update(token_ids)  # noqa: SLF001 (what the scheduler reads; set from stop_token_ids at creation)
    return params


def _reply(operation: str, result: Any) -> Reply:
    if isinstance(result, ErrorResponse):
        raise _error(result)
    if hasattr(result, "model_dump"):
        if operation == "responses":
            return Reply(body=result.model_dump(mode="json", by_alias=True))
        return Reply(body=result.model_dump(exclude_none=operation in {"messages", "count_tokens"}))
    return Reply(stream=_responses_events(result) if operation == "responses" else result)


async def _responses_events(events: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for event in events:
        data = event.model_dump_json(indent=None, by_alias=True)
        yield f"event: {event.type}\ndata: {data}\n\n"


def _translated(error: Exception) -> LoradockError:
    if isinstance(error, VLLMValidationError) and error.parameter in TOO_LONG:
        return ContextLengthExceeded(error.args[0], "prompt")
    return _error(create_error_response(error))


def _error(response: ErrorResponse) -> LoradockError:
    status, message, param = response.error.code, response.error.message, response.error.param
    if status == HTTPStatus.BAD_REQUEST and "maximum context length" in message:
        return ContextLengthExceeded(message, param)
    match status:
        case HTTPStatus.NOT_FOUND:
            return ResourceNotFound(message)
        case HTTPStatus.NOT_IMPLEMENTED:
            return NotSupported(message)
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return Unavailable(message)
        case _ if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return InvalidRequest(message, param)
    log.error("engine_error", status=status, message=message)
    return LoradockError()
