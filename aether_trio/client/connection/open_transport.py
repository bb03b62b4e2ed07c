"""Connects a client's socket to the gateway, with TLS and the address's transport."""

from __future__ import annotations

import os
import ssl
from typing import Final

import anyio
import anyio.abc
from anyio.streams.tls import TLSAttribute, TLSStream

from aether_trio.client.connection.address import Address, TransportKind
from aether_trio.client.connection.framed import FramedTransport
from aether_trio.client.connection.grpc import GrpcCodec
from aether_trio.client.connection.message_transport import MessageCodec, MessageTransport
from aether_trio.client.connection.tls import ALPN
from aether_trio.client.connection.transport import Transport, TransportClient, tune
from aether_trio.client.connection.websocket import WebSocketCodec
from aether_trio.client.errors import ProtocolViolation, TlsRefused, Unavailable

_NO_ISSUER: Final = frozenset((18, 19, 20, 21))
"""OpenSSL's X509_V_ERR_... for a certificate whose authority is not at hand."""
_NOT_A_GATEWAY: Final = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST")


async def open_transport(
    address: Address,
    context: ssl.SSLContext | None,
    server_name: str | None,
    client: TransportClient,
    ping_interval_s: float | None,
) -> Transport:
    """Connect to a gateway. Raises Unavailable, TlsRefused, ProtocolViolation."""
    stream: anyio.abc.ByteStream
    try:
        stream = socket_stream = await anyio.connect_tcp(address.host, address.port)
    except (OSError, anyio.BrokenResourceError) as error:
        raise Unavailable("UNREACHABLE", f"cannot connect to {address}: {_reason(error)}", retryable=True) from error
    tune(socket_stream)
    if context is not None:
        stream = await _secure(socket_stream, address, context, server_name)
    codec: MessageCodec
    match address.transport:
        case TransportKind.FRAMED:
            return FramedTransport(stream, client, ping_interval_s)
        case TransportKind.WEBSOCKET:
            codec = WebSocketCodec(address.authority)
        case TransportKind.GRPC:
            codec = GrpcCodec(address.authority, tls=address.tls)
    return MessageTransport(stream, client, ping_interval_s, codec)


def _reason(error: Exception) -> str:
    """Return the causes of anyio's general error: why each address failed."""
    cause = error.__cause__ or error
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,)
    return ", ".join(dict.fromkeys(map(_text, causes)))


def _text(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error)
    # The latter from getaddrinfo.
    return os.strerror(error.errno) if error.errno > 0 else error.strerror


async def _secure(
    stream: anyio.abc.SocketStream, address: Address, context: ssl.SSLContext, server_name: str | None
) -> anyio.abc.ByteStream:
    try:
        secured = await TLSStream.wrap(
            stream, server_side=False, hostname=server_name or address.host, ssl_context=context
        )
    except ssl.SSLCertVerificationError as error:
        await anyio.aclose_forcefully(stream)
        hint = (
            "; name the file of its certificate authority in TlsOptions(ca_file=...)"
            if error.verify_code in _NO_ISSUER
            else ""
        )
        raise TlsRefused(f"the certificate of {address} is not trusted: {error.verify_message}{hint}") from error
    except ssl.SSLError as error:
        await anyio.aclose_forcefully(stream)
        hint = ""
        if error.reason in _NOT_A_GATEWAY:
            hint = f"; is it plaintext ({address.scheme.removesuffix('s')}://)?"
        raise TlsRefused(f"the TLS handshake with {address} failed: {error.reason or error}{hint}") from error
    except (anyio.BrokenResourceError, anyio.EndOfStream, OSError) as error:
        await anyio.aclose_forcefully(stream)
        raise Unavailable(
            "UNREACHABLE", f"the server at {address} closed the connection during the TLS handshake", retryable=True
        ) from error
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    chosen = secured.extra(TLSAttribute.alpn_protocol, None)  # noqa: S610 - anyio's, not Django's
    if chosen not in {None, ALPN[address.transport]}:
        await anyio.aclose_forcefully(secured)
        raise ProtocolViolation(
            "BAD_ALPN", f"the server at {address} chose the ALPN protocol {chosen!r}, not {ALPN[address.transport]!r}"
        )
    return secured
