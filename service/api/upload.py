"""A registration as a multipart form, written to disk while it is read.

The form is judged part by part, at each part's headers: a field nobody knows is refused before its content is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import anyio.to_thread
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.api.schemas import UploadFields
from service.registry.disk import storing
from service.registry.intake import accept_name, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES: Final = 4096
MAX_FILES: Final = 100
"""An Unsloth export with its tokenizer has about a dozen."""


async def receive(content_type: str, body: AsyncIterator[bytes], scratch: Path, max_bytes: int) -> UploadFields:
    """Read a form; its files, or what its archive holds (up to `max_bytes`), are then in `scratch / "files"`.

    `scratch` is an empty directory, and whatever was written to it is the caller's to delete, however this ends.
    Raises RequestValidationError for a form that isn't as the contract has it, Rejected for names and archives
    that must not be unpacked, StoreUnavailable when the disk refuses.
    """
    form = _Form(scratch)
    try:
        parser = MultipartParser(_boundary(content_type), form.callbacks)
        async for chunk in body:
            await anyio.to_thread.run_sync(_feed, parser, chunk)
    except FormParserError as error:
        raise invalid("", "The body is not a well-formed multipart form.") from error
    finally:
        form.close()
    fields = form.finished()
    if form.archive:
        await anyio.to_thread.run_sync(_unpack, form.archive, form.files, max_bytes)
    return fields


def invalid(where: str, message: str) -> RequestValidationError:
    """A request whose body is wrong at `where`, in the form FastAPI gives its own."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", where), "msg": message}])


class _Form:
    """Receives the parser's callbacks: short fields into memory, files onto the disk."""

    def __init__(self, scratch: Path) -> None:
        self.files = scratch / "files"
        self.archive: Path | None = None
        self._scratch = scratch
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._key.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._note_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._write(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self._fields: dict[str, str] = {}
        self._names: set[str] = set()
        self._file: BinaryIO | None = None
        self._whole = False
        self._begin()

    def finished(self) -> UploadFields:
        """The form's fields. Raises RequestValidationError when something is missing or can't be."""
        if not self._whole:
            raise invalid("", "The form ends before its last part does.")
        if bool(self._names) == bool(self.archive):
            raise invalid("files", "Send either the adapter's files, each as a part named files, or one archive.")
        try:
            return UploadFields.model_validate(self._fields)
        except ValidationError as error:
            raise RequestValidationError([item | {"loc": ("body", *item["loc"])} for item in error.errors()]) from error

    def close(self) -> None:
        """Close what a broken form left open."""
        if self._file:
            self._file.close()

    def _begin(self) -> None:
        self._key, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._field = ""

    def _note_header(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._key, self._value = bytearray(), bytearray()

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if filename is not None and self._field == "files":
            self._file = self._path(filename.decode("utf-8", "replace")).open("xb")
        elif filename is not None and self._field == "archive" and self.archive is None:
            self.archive = self._scratch / "archive"
            self._file = self.archive.open("xb")
        elif filename is not None or self._field not in UploadFields.model_fields or self._field in self._fields:
            raise invalid(self._field[:100], "No such field, or it was sent in another form or more than once.")

    def _path(self, filename: str) -> Path:
        name = accept_name(filename)
        if name in self._names or len(self._names) >= MAX_FILES:
            raise invalid("files", f"The same file twice, or more than {MAX_FILES} files.")
        self._names.add(name)
        self.files.mkdir(exist_ok=True)
        return self.files / name

    def _write(self, data: bytes) -> None:
        if self._file:
            self._file.write(data)
            return
        self._value += data
        if len(self._value) > MAX_FIELD_BYTES:
            raise invalid(self._field, f"Longer than {MAX_FIELD_BYTES} bytes.")

    def _end(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
        else:
            self._fields[self._field] = self._value.decode("utf-8", "replace")

    def _finish(self) -> None:
        self._whole = True


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise invalid("", "The form has no boundary.")
    return boundary


def _feed(parser: MultipartParser, chunk: bytes) -> None:
    with storing():
        parser.write(chunk)


def _unpack(archive: Path, target: Path, max_bytes: int) -> None:
    with storing():
        unpack(archive, target, max_bytes=max_bytes)
        archive.unlink()
