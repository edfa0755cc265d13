"""One form for every record: ours, uvicorn's and the engine's. Columns on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, Literal

import structlog
from asgi_correlation_id import correlation_id

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

Form = Literal["auto", "console", "json"]

ADOPTED: Final = ("uvicorn", "uvicorn.error", "vllm")
"""Loggers that bring handlers of their own; their records go through ours instead."""
SILENCED: Final = ("uvicorn.access", "python_multipart.multipart", "watchfiles.main")
"""The access log is written by `api.middleware`; the parser logs every file it opens, the watcher every change."""


def configure(form: Form = "auto", level: str = "info") -> None:
    """Set this process's logging up; may be called again. Writes to standard error.

    `form` "auto" is console when standard error is a terminal; `level` is the least one written.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _drop_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_render(console)))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ADOPTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _render(console: bool) -> list[Processor]:
    """The last steps. Tracebacks go without local variables, which hold what clients sent."""
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if console:
        return [strip, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [strip, structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]


def _add_request_id(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    if request_id := correlation_id.get():
        record["request_id"] = request_id
    return record


def _drop_colours(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """Uvicorn sends its message a second time, with escape codes."""
    record.pop("color_message", None)
    return record
