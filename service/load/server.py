"""A server that is put under load, by its address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from service.errors import ConfigurationError

PORTS = {"http": 80, "https": 443}


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
        return host if self.port == PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"
