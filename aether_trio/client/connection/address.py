"""Parses a client's address of a gateway, such as "aether://localhost:50051".

An address is a scheme, a host, and mostly a port. Whatever else a URL can have is refused,
credentials above all: they are arguments of a client, and would end up in logs here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from aether_trio.client.errors import AddressError

DEFAULT_PORT: Final = 50051
WEBSOCKET_PATH: Final = "/v1/connect"


class TransportKind(enum.Enum):
    """The protocol of a client's connection: binary framing, WebSocket or gRPC."""

    FRAMED = "framed"
    WEBSOCKET = "websocket"
    GRPC = "grpc"


_SCHEMES: Final[Mapping[str, tuple[TransportKind, bool, int]]] = MappingProxyType(
    {
        "aether": (TransportKind.FRAMED, False, DEFAULT_PORT),
        "aethers": (TransportKind.FRAMED, True, DEFAULT_PORT),
        "ws": (TransportKind.WEBSOCKET, False, 80),
        "wss": (TransportKind.WEBSOCKET, True, 443),
        "grpc": (TransportKind.GRPC, False, DEFAULT_PORT),
        "grpcs": (TransportKind.GRPC, True, DEFAULT_PORT),
    }
)


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed gateway address; an IPv6 `host` has no brackets."""

    scheme: str
    transport: TransportKind
    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Return "host:port" of the gateway, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_address(text: str) -> Address:
    """Parse a gateway address. Raises AddressError, without credentials, or TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"the address is no text such as 'aether://localhost:50051', but {type(text).__name__}")
    expected = "expected aether://HOST[:PORT], aethers://, ws://, wss://, grpc:// or grpcs://"
    if "://" not in text:
        raise AddressError(f"the address {text!r} has no scheme; {expected}")
    try:
        parts = urlsplit(text)
        port = parts.port
        host = parts.hostname
    except ValueError as error:
        raise AddressError(f"the address cannot be read: {error}; {expected}") from None
    known = _SCHEMES.get(parts.scheme)
    if known is None:
        hint = {"http": " (a browser's address; the client's is ws://)", "https": " (the client's is wss://)"}
        raise AddressError(
            f"the address has the unknown scheme {parts.scheme!r}{hint.get(parts.scheme, '')}; {expected}"
        )
    if "@" in parts.netloc:
        raise AddressError("the address has credentials in it; give them to the client as api_key= or token=")
    if not host:
        raise AddressError(f"the address has no host; {expected}")
    if any(character.isspace() for character in text):
        raise AddressError(f"the address has a space in it; {expected}")
    if parts.query or parts.fragment:
        raise AddressError("the address has a query (?) or a fragment (#); leave it out")
    transport, tls, default_port = known
    path = parts.path.rstrip("/")
    if path and not (transport is TransportKind.WEBSOCKET and path == WEBSOCKET_PATH):
        raise AddressError(f"the address has the path {parts.path!r}; leave it out")
    if port == 0:
        raise AddressError("the address has port 0, to which no client can connect; use the port of the gateway")
    return Address(parts.scheme, transport, tls, host, default_port if port is None else port)
