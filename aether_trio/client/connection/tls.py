"""Builds a client's TLS context: trusted authorities, own certificate, ALPN.

ALPN says which transport is meant ("aether/1", "http/1.1" for WebSocket, "h2" for gRPC), so one
port serves all of them. A gateway that does not know ALPN decides by the first bytes, which works
as well.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aether_trio.client.connection.address import Address, TransportKind
from aether_trio.client.errors import AddressError

ALPN: Final[Mapping[TransportKind, str]] = MappingProxyType(
    {TransportKind.FRAMED: "aether/1", TransportKind.WEBSOCKET: "http/1.1", TransportKind.GRPC: "h2"}
)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """PEM files for a client's TLS; without `ca_file` it trusts the system's CAs."""

    ca_file: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    """The client's certificate with its chain, and its key if there is no `key_file`."""
    key_file: str | os.PathLike[str] | None = None
    server_name: str | None = None
    """The name in the gateway's certificate, when it is not the host of the address."""


def context_for(address: Address, options: TlsOptions | ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return the TLS context for an address, None for plaintext. Raises AddressError."""
    if not address.tls:
        if options is not None:
            text = f"{address.scheme}:// is plaintext, but tls= was given; the encrypted scheme is {address.scheme}s://"
            raise AddressError(text)
        return None
    context = options if isinstance(options, ssl.SSLContext) else _build(options or TlsOptions())
    context.set_alpn_protocols([ALPN[address.transport]])
    return context


def _build(options: TlsOptions) -> ssl.SSLContext:
    if options.key_file is not None and options.cert_file is None:
        raise AddressError("TlsOptions has a key_file but no cert_file; name the file of its certificate too")
    try:
        context = ssl.create_default_context(cafile=os.fspath(options.ca_file) if options.ca_file is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise AddressError(f"ca_file {options.ca_file} cannot be used: {error.strerror or error}") from error
    if options.cert_file is None:
        return context
    try:
        context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        files = f"cert_file {options.cert_file}" + (f" with key_file {options.key_file}" if options.key_file else "")
        raise AddressError(f"{files} cannot be used: {error.strerror or error}") from error
    return context
