"""vLLM's own OpenAI and Anthropic handlers, used as a library: every field vLLM honours, and none of it ours.

Our registry stands in the place of vLLM's model list: handlers are called with the leased version's engine name and
answer under the name that was asked for. Written against vLLM 0.32, like everything in this room that imports it.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from http import HTTPStatus
from operator import itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import structlog
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
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine.exceptions import EngineDeadError

from service.engine import chunks
from service.engine.port import EngineAdapter, Operation, Reply
from service.engine.work import Work, current
from service.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    LoradockError,
    NotFinite,
    NotSupported,
    ResourceNotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

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

TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Voice:
    """How an adapter is spoken to where it differs from the base: its chat template, its tokenizer."""

    template: str | None
    renderer: Any
    """vLLM's renderer around the adapter's own tokenizer, or None for the base's."""


class Models(OpenAIServingModels):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's model list, filled by our registry: `lora_requests` holds what is loaded, by engine name."""

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """The name the client asked for, which is the one its answer carries."""
        work = current.get(None)
        asked: str | None = work.call.body.model if work else None
        return asked or cast("str", super().model_name(lora_request))


class Renderer(OnlineRenderer):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's renderer, with an adapter's own template and tokenizer where it has them.

    Chat, responses, messages and tokenize all pass `preprocess_chat`; raw prompts pass `preprocess_cmpl`.
    """

    voices: dict[str, Voice]

    async def preprocess_chat(
        self, request: Any, messages: list[Any], default_template: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Render and tokenise a chat."""
        voice = self._voice()
        template = voice.template if voice else None
        speaker = self._speaking_as(voice)
        return await OnlineRenderer.preprocess_chat(
            speaker, request, messages, template or default_template, *args, **kwargs
        )

    async def preprocess_cmpl(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise raw prompts."""
        return await OnlineRenderer.preprocess_cmpl(self._speaking_as(self._voice()), *args, **kwargs)

    def _voice(self) -> Voice | None:
        work = current.get(None)
        return self.voices.get(work.lane) if work else None

    def _speaking_as(self, voice: Voice | None) -> Any:
        if voice is None or voice.renderer is None:
            return self
        speaker = copy.copy(self)
        speaker.renderer = voice.renderer
        return speaker


class Stream:
    """Chunks whose end is also that of the request's work. Nothing is put between them and whoever reads."""

    def __init__(self, chunks: AsyncGenerator[str, None], work: Work) -> None:
        self._chunks = chunks
        self._work = work

    def __aiter__(self) -> AsyncIterator[str]:
        """The chunks themselves."""
        return self._chunks

    async def aclose(self) -> None:
        """End the work, read to the end or not."""
        try:
            await self._chunks.aclose()
        finally:
            await self._work.close()


class OpenAILayer:
    """The handlers around one engine. `models` and the voices follow what is loaded."""

    def __init__(self, llm: AsyncLLM, args: Namespace, served: str) -> None:
        self.models = Models(llm, [BaseModelPath(name=served, model_path=args.model)])
        self._llm = llm
        self._args = args
        self._served = served
        self._voices: dict[str, Voice] = {}
        self._handlers: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {}

    async def wire(self) -> None:
        """Build vLLM's handlers, as its own server does (vllm/entrypoints/launchers/api_server/app_state.py)."""
        args, llm = self._args, self._llm
        logger = RequestLogger(max_log_len=args.max_log_len) if args.enable_log_requests else None
        template = load_chat_template(args.chat_template)
        template_kwargs = resolve_default_chat_template_kwargs(args)
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
        renderer.voices = self._voices
        await asyncio.to_thread(renderer.warmup)
        state = SimpleNamespace(openai_serving_models=self.models, online_renderer=renderer, tool_server=None)
        tasks = await llm.get_supported_tasks()
        await init_generate_state(llm, cast("Any", state), args, logger, tasks, template_kwargs)
        tokenization = ServingTokenization(
            self.models,
            renderer,
            request_logger=logger,
            chat_template=template,
            chat_template_content_format=args.chat_template_content_format,
            default_chat_template_kwargs=template_kwargs,
        )
        cut_plain_chunks(state.openai_serving_completion, state.openai_serving_chat)
        self._handlers = {
            "completions": state.openai_serving_completion.create_completion,
            "chat": state.openai_serving_chat.create_chat_completion,
            "responses": state.openai_serving_responses.create_responses,
            "messages": state.anthropic_serving_messages.create_messages,
            "count_tokens": state.anthropic_serving_messages.count_tokens,
            "tokenize": tokenization.create_tokenize,
            "detokenize": tokenization.create_detokenize,
        }

    async def admit(self, adapter: EngineAdapter, request: LoRARequest) -> None:
        """From now on requests may name this adapter. Raises what its tokenizer raises when it can't be read."""
        voice = await asyncio.to_thread(_read_voice, adapter, self._llm)
        if voice:
            self._voices[adapter.name] = voice
        self.models.lora_requests[adapter.name] = request

    def dismiss(self, name: str) -> LoRARequest | None:
        """No longer; returns the request it was loaded with."""
        voice = self._voices.pop(name, None)
        if voice and voice.renderer:
            voice.renderer.shutdown()
        return cast("LoRARequest | None", self.models.lora_requests.pop(name, None))

    async def run(self, operation: str, work: Work) -> Reply:
        """Hand the request to vLLM's handler under the engine's own name for the model."""
        # Never reset: a stream is read by this task after we returned, in this same context.
        current.set(work)
        body = work.call.body.model_copy(update={"model": work.lane or self._served})
        try:
            reply = _reply(operation, await self._handlers[operation](body, work.call.raw), work)
        except BaseException as error:
            await work.close()
            if (ours := _translated(error)) is not error:
                raise ours from error
            raise
        if reply.stream is None:
            await work.close()
        return reply


def _read_voice(adapter: EngineAdapter, llm: AsyncLLM) -> Voice | None:
    template, tokenizer = adapter.path / TEMPLATE, adapter.path / TOKENIZER
    text = template.read_text("utf-8") if template.is_file() else None
    renderer = None
    if tokenizer.is_file():
        renderer = type(llm.renderer)(llm.vllm_config, get_tokenizer(adapter.path, trust_remote_code=False))
    return Voice(text, renderer) if text or renderer else None


def _reply(operation: str, result: Any, work: Work) -> Reply:
    if work.usage.not_finite:
        raise NotFinite
    if isinstance(result, ErrorResponse):
        raise _error(result)
    if hasattr(result, "model_dump"):
        if operation == "responses":
            return Reply(body=result.model_dump(mode="json", by_alias=True))
        return Reply(body=result.model_dump(exclude_none=operation in {"messages", "count_tokens"}))
    return Reply(stream=Stream(_responses_events(result) if operation == "responses" else result, work))


async def _responses_events(events: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
    async for event in events:
        data = event.model_dump_json(indent=None, by_alias=True)
        yield f"event: {event.type}\ndata: {data}\n\n"


def cut_plain_chunks(completion: OpenAIServingCompletion, chat: OpenAIServingChat) -> None:
    """Let `chunks` stand in front of vLLM's generators wherever a stream has one choice and nothing but text."""
    complete, converse = completion.completion_stream_generator, chat.chat_completion_stream_generator

    def completion_chunks(request: Any, inputs: list[Any], outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs) > 1 or (request.n or 1) > 1:
            return complete(request, inputs, outputs, *args, **kwargs)
        turns = chunks.Turns(outputs, itemgetter(1))
        return chunks.stream(lambda turns: complete(request, inputs, turns, *args, **kwargs), turns, '"text":')

    def chat_chunks(request: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if chat.parser_cls or chat.enable_log_outputs or (request.n or 1) > 1:
            return converse(request, outputs, *args, **kwargs)
        turns = chunks.Turns(outputs, lambda output: output)
        return chunks.stream(lambda turns: converse(request, turns, *args, **kwargs), turns, '"delta":{"content":')

    completion.completion_stream_generator = completion_chunks
    chat.chat_completion_stream_generator = chat_chunks


def _translated(error: BaseException) -> BaseException:
    """What vLLM raised, in our words; what is ours or nobody's fault stays as it is."""
    match error:
        case EngineDeadError():
            return EngineDead()
        case VLLMValidationError() if error.parameter in TOO_LONG:
            return ContextLengthExceeded(error.args[0], "prompt")
        case VLLMError() | ValueError() | TypeError() | OverflowError() | NotImplementedError():
            return _error(create_error_response(error))
    return error


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
