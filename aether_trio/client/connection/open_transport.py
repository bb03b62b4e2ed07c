"""Connects a client's socket to the gateway, with TLS and the address's transport."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from types import MappingProxyType
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
from aether_trio.client.errors import ClientCertificateRefused, ProtocolViolation, TlsRefused, Unavailable

_NO_ISSUER: Final = frozenset((18, 19, 20, 21))
"""OpenSSL's X509_V_ERR_... for a certificate whose authority is not at hand."""
_EXPIRED: Final = 10
"""X509_V_ERR_CERT_HAS_EXPIRED."""
_OTHER_NAME: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_WITH_CERTIFICATE: Final = "name its files in TlsOptions(cert_file=..., key_file=...)"
_NOT_A_GATEWAY: Final = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST")


_ALERTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
        "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
        "SSLV3_ALERT_BAD_CERTIFICATE": "it is not valid",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for clients",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it is not acceptable",
        "TLSV1_ALERT_UNKNOWN_CA": "the gateway does not know its authority",
        "TLSV1_ALERT_DECRYPT_ERROR": "its signature is wrong",
    }
)
"""What a gateway's alert says about the client's certificate."""


def certificate_refusal(error: BaseException | None) -> ClientCertificateRefused | None:
    """Return the refusal of the client's certificate that broke a connection, or None.

    TLS 1.3 has the client end its handshake first, so the gateway's alert comes to its first read.
    """
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    reason = getattr(error, "reason", None) or ""
    if reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return ClientCertificateRefused(f"the gateway wants a client certificate: {_WITH_CERTIFICATE}")
    if why := _ALERTS.get(reason):
        return ClientCertificateRefused(f"the gateway refused the client certificate: {why}; {_WITH_CERTIFICATE}")
    return None


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
        hint = ""
        if error.verify_code in _NO_ISSUER:
            hint = "; name the file of its certificate authority in TlsOptions(ca_file=...)"
        elif error.verify_code == _EXPIRED:
            hint = "; the gateway needs a new one"
        elif error.verify_code in _OTHER_NAME:
            hint = "; use a name that is in the certificate as the host"
        raise TlsRefused(f"the certificate of {address} is not trusted: {error.verify_message}{hint}") from error
    except ssl.SSLError as error:
        await anyio.aclose_forcefully(stream)
        if refusal := certificate_refusal(error):
            raise refusal from error
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
