"""A running service, as the commands speak to it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CONNECT_SECONDS: Final = 5.0


class ServiceError(Exception):
    """The service refused, or could not be asked; `refused` tells the two apart.

    `details` has RFC 9457's members and, where something was wrong with an adapter, `problems`.
    """

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, refused: bool = False) -> None:
        super().__init__(message)
        self.details = details or {"title": "Unavailable", "detail": message}
        self.refused = refused


class Client:
    """The service at `url`. A proof or a drain takes as long as it takes, so answers are waited for without end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx2.Client(timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS))

    def __enter__(self) -> Self:
        """Keep the connection until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._http.close()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The body of the answer, None where it has none. Raises ServiceError."""
        return self._send(lambda: self._http.build_request(method, self._url + path, json=body))

    def upload(
        self,
        fields: Mapping[str, str],
        files: Sequence[Path],
        began: Callable[[int], None],
        sent: Callable[[int], None],
    ) -> Any:
        """Register an adapter by its files, which are read while they are sent.

        `began` is told how many bytes there are, `sent` how many more have gone. Raises ServiceError, OSError.
        """
        with ExitStack() as opened:
            parts = [("files", (path.name, opened.enter_context(path.open("rb")))) for path in files]

            def request() -> httpx2.Request:
                request = self._http.build_request("POST", f"{self._url}/adapters", data=fields, files=parts)
                began(int(request.headers["Content-Length"]))
                request.stream = _Watched(request.stream, sent)
                return request

            return self._send(request)

    def _send(self, build: Callable[[], httpx2.Request]) -> Any:
        try:
            answer = self._http.send(build())
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServiceError(f"No service answers at {self._url}: {error}") from error
        if answer.is_success:
            return answer.json() if answer.content else None
        raise _refusal(answer)


class _Watched(httpx2.SyncByteStream):
    """A body that tells how much of it has gone."""

    def __init__(self, body: Any, sent: Callable[[int], None]) -> None:
        self._body = body
        self._sent = sent

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            yield chunk
            self._sent(len(chunk))


def _refusal(answer: httpx2.Response) -> ServiceError:
    try:
        details = answer.json()
        return ServiceError(details["detail"], details, refused=answer.is_client_error)
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"{answer.url} answered {answer.status_code} {answer.reason_phrase}; is it loradock?")
