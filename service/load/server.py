"""A server that is put under load, by its address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import httpx2

from service.errors import ConfigurationError

PORTS: Final = {"http": 80, "https": 443}
ASK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where it listens. `prefix` is what stands before `/v1` in its paths."""

    url: str
    secure: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def at(cls, url: str) -> Self:
        """The server at `http(s)://host[:port][/prefix][/v1]`. Raises ConfigurationError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url} is no address: {error}.") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise ConfigurationError(f"{url} is no address of a server: it has to begin with http:// or https://.")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(url, parts.scheme == "https", parts.hostname, port or PORTS[parts.scheme], prefix)

    @property
    def authority(self) -> str:
        """What a request's Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self._scheme] else f"{host}:{self.port}"

    def models(self) -> list[str]:
        """What may be asked for, as `/v1/models` lists it. Raises ConfigurationError where that can't be had."""
        try:
            answer = httpx2.get(f"{self._scheme}://{self.authority}{self.prefix}/v1/models", timeout=ASK_SECONDS)
            answer.raise_for_status()
            return [str(model["id"]) for model in answer.json()["data"]]
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            raise ConfigurationError(f"{self.url} doesn't list its models: it answered {status}.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ConfigurationError(f"No server answers at {self.url}: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{self.url} doesn't list its models as OpenAI's API does.") from None

    @property
    def _scheme(self) -> str:
        return "https" if self.secure else "http"
