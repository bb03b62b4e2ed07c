"""Checks a client's WebSocket upgrade request, without I/O (RFC 6455 section 4.2).

Also asked: one of our subprotocols, an allowed origin, and no query, as URLs end up in logs and
must hold no credentials. No extensions: permessage-deflate would cost 64 KiB for each connection.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from wsproto.utilities import generate_accept_token

from aether_trio.transport.http1.connection import Headers, Request
from aether_trio.transport.websocket.deliveries import SUBPROTOCOL as ACKNOWLEDGED
from aether_trio.transport.websocket.origins import OriginPolicy
from aether_trio.wire.browser import CODECS, JSON, Codec

_VERSION = "13"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The gateway's response to a WebSocket upgrade that it accepts, and the codec."""

    codec: Codec
    response: bytes
    acknowledges: bool = False
    """Whether the client says which deliveries it is done with (deliveries.py)."""


_SUBPROTOCOLS: Final[dict[str, Codec]] = {**CODECS, ACKNOWLEDGED: JSON}


class UpgradeRefused(Exception):
    """Raised when a WebSocket upgrade is refused, with the HTTP answer and a `reason`."""

    def __init__(
        self, reason: str, text: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, headers: Headers | None = None
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.headers = headers or []


def negotiate(request: Request, origins: OriginPolicy, *, secure: bool, loopback: bool) -> Upgrade:
    """Accept a WebSocket upgrade request. Raises UpgradeRefused."""
    headers = request.headers
    if "websocket" not in _tokens(headers.get("upgrade", "")) or "upgrade" not in _tokens(
        headers.get("connection", "")
    ):
        raise UpgradeRefused(
            "no_websocket",
            "the request is no WebSocket upgrade, but this address is for WebSocket connections",
            HTTPStatus.UPGRADE_REQUIRED,
            [("Upgrade", "websocket"), ("Connection", "Upgrade")],
        )
    if headers.get("sec-websocket-version") != _VERSION:
        raise UpgradeRefused(
            "version",
            f"unknown WebSocket version: Sec-WebSocket-Version must be {_VERSION}",
            HTTPStatus.UPGRADE_REQUIRED,
            [("Sec-WebSocket-Version", _VERSION)],
        )
    key = headers.get("sec-websocket-key", "")
    if not _is_key(key):
        raise UpgradeRefused("key", "invalid upgrade: Sec-WebSocket-Key must be 16 bytes in base64")
    origin = headers.get("origin")
    if not origins.allows(origin, headers.get("host", ""), secure=secure, loopback=loopback):
        raise UpgradeRefused(
            "origin",
            f"web pages of {origin!a} may not connect; see the setting websocket.allowed_origins",
            HTTPStatus.FORBIDDEN,
        )
    if request.query is not None:
        raise UpgradeRefused("query", "the address has a query; remove it: credentials go into the first message")
    offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    chosen = next((name for name in offered if name in _SUBPROTOCOLS), None)
    if chosen is None:
        known = ", ".join(_SUBPROTOCOLS)
        raise UpgradeRefused(
            "subprotocol", f"no subprotocol is known; offer one of these in Sec-WebSocket-Protocol: {known}"
        )
    return Upgrade(_SUBPROTOCOLS[chosen], _response(key, chosen), acknowledges=chosen == ACKNOWLEDGED)


def _response(key: str, subprotocol: str) -> bytes:
    accept = generate_accept_token(key.encode("ascii")).decode("ascii")
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n"
        f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode("ascii")


def _tokens(value: str) -> set[str]:
    return {token.strip().lower() for token in value.split(",")}


def _is_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
