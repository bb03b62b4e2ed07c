"""Opening a connection: the socket, TLS on it, and the lane that the address asks for."""

from __future__ import annotations

import ssl
from typing import Final

import anyio
import anyio.abc
from anyio.streams.tls import TLSAttribute, TLSStream

from aether_trio.client.address import Address, LaneKind
from aether_trio.client.errors import ProtocolViolation, TlsRefused, Unavailable
from aether_trio.client.framed import FramedLane
from aether_trio.client.lane import Hub, Lane, tune
from aether_trio.client.tls import ALPN
from aether_trio.client.websocket import WebSocketLane

__all__ = ["dial"]

_NOT_A_GATEWAY: Final = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST")


async def dial(
    address: Address, context: ssl.SSLContext | None, server_name: str | None, hub: Hub, ping_interval_s: float | None
) -> Lane:
    """A lane over a fresh connection, not opened yet. Raises Unavailable, TlsRefused, ProtocolViolation."""
    stream: anyio.abc.ByteStream
    try:
        stream = socket_stream = await anyio.connect_tcp(address.host, address.port)
    except (OSError, anyio.BrokenResourceError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unavailable("UNREACHABLE", f"cannot connect to {address}: {reason}", retryable=True) from error
    tune(socket_stream)
    if context is not None:
        stream = await _secure(socket_stream, address, context, server_name)
    if address.lane is LaneKind.FRAMED:
        return FramedLane(stream, hub, ping_interval_s)
    return WebSocketLane(stream, hub, ping_interval_s, authority=address.authority)


async def _secure(
    stream: anyio.abc.SocketStream, address: Address, context: ssl.SSLContext, server_name: str | None
) -> anyio.abc.ByteStream:
    try:
        secured = await TLSStream.wrap(
            stream, server_side=False, hostname=server_name or address.host, ssl_context=context
        )
    except ssl.SSLCertVerificationError as error:
        await anyio.aclose_forcefully(stream)
        raise TlsRefused(f"the certificate of {address} is not trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        await anyio.aclose_forcefully(stream)
        hint = ""
        if error.reason in _NOT_A_GATEWAY:
            plain = "aether" if address.lane is LaneKind.FRAMED else "ws"
            hint = f"; is it plaintext ({plain}://)?"
        raise TlsRefused(f"no TLS with {address}: {error.reason or error}{hint}") from error
    except (anyio.BrokenResourceError, anyio.EndOfStream, OSError) as error:
        await anyio.aclose_forcefully(stream)
        raise Unavailable("UNREACHABLE", f"{address} ended the TLS handshake", retryable=True) from error
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    chosen = secured.extra(TLSAttribute.alpn_protocol, None)  # noqa: S610 - anyio's, not Django's
    if chosen not in {None, ALPN[address.lane]}:
        await anyio.aclose_forcefully(secured)
        raise ProtocolViolation("BAD_ALPN", f"{address} chose {chosen!r}, not {ALPN[address.lane]!r}")
    return secured
