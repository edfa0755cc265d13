"""A server that says what a test wrote down, byte by byte, in the pieces it was written in."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from service.load.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    Script = Callable[[dict[str, Any]], Sequence[bytes]]
    """From a request's body to the pieces of the answer."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@asynccontextmanager
async def scripted(script: Script, asked: list[dict[str, Any]] | None = None) -> AsyncIterator[Server]:
    """The server; what it was asked goes to `asked`. It lists two models, `a` and `b`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models "):
            writer.write(found({"data": [{"id": "a"}, {"id": "b"}]}))
            writer.close()
            return
        (length,) = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line]
        body = json.loads(await reader.readexactly(length))
        if asked is not None:
            asked.append(body)
        with suppress(ConnectionError):
            for piece in script(body):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    async with listening:
        yield Server.at(f"http://{host}:{port}")


def chunked(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def token(text: str = "word", finish: str | None = None) -> dict[str, Any]:
    """A piece of a streamed completion."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def usage(tokens: int, prompt_tokens: int = 3) -> dict[str, Any]:
    """A stream's last word."""
    return {"choices": [], "usage": {"completion_tokens": tokens, "prompt_tokens": prompt_tokens}}


def spoken(body: dict[str, Any]) -> list[bytes]:
    """A sound streamed completion of max_tokens tokens, one a piece."""
    count = body["max_tokens"]
    last = [chunked(event(usage(count))), chunked(b"data: [DONE]\n\n") + END]
    return [HEAD, *(chunked(event(token())) for _ in range(count)), *last]


def found(value: Any, status: bytes = b"200 OK") -> bytes:
    """An answer that isn't streamed."""
    body = json.dumps(value).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def refused(status: bytes, message: str) -> list[bytes]:
    """An error in OpenAI's shape."""
    return [found({"error": {"message": message}}, status)]
