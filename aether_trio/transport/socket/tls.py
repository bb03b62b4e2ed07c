"""Makes TLS contexts from certificate files; encrypts and decrypts TLS records.

`TlsSession` wraps an `ssl.SSLObject` on two memory buffers, so that a connection seals what it has
and sends it at once, without a coroutine: an idle one needs no writer task. TLS 1.3 only: no
renegotiation, hence writing never needs a read.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import trio

from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.client_certificates import client_problem, issuer_of

ALPN_H2: Final = "h2"
_RECORDS_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 64 * 1024
_FRUITLESS_BYTES: Final = 64 * 1024
"""Of records without plain bytes (key updates, empty ones), or of one incomplete record."""
_UNASKED_BYTES: Final = 4 * 1024
"""Of answers to key updates before the next `seal`: a hundred."""


class ClientCertificates(StrEnum):
    """Whether clients must show a certificate when a client CA is set."""

    REQUIRED = "required"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a server's PEM files; `client_ca_file` turns client certificates on."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_certificates: ClientCertificates = ClientCertificates.REQUIRED


def server_context(settings: TlsFiles, *, alpn: Sequence[str] = (ALPN_H2,)) -> ssl.SSLContext:
    """Make a server's TLS 1.3 context, without tickets. Raises OSError with the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, settings.cert_file, settings.key_file)
    context.set_alpn_protocols(list(alpn))
    context.num_tickets = 0  # a ticket costs 1 KiB, and long streams rarely resume
    if settings.client_ca_file is not None:
        _load_authorities(context, settings.client_ca_file)
        required = settings.client_certificates is ClientCertificates.REQUIRED
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _load_chain(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    encrypted = False

    # Without it OpenSSL asks on the terminal, and a service waits there for ever.
    def no_password() -> bytes:
        nonlocal encrypted
        encrypted = True
        return b""

    try:
        context.load_cert_chain(cert_file, key_file, password=no_password)
    except ssl.SSLError as error:
        if encrypted:
            raise _unusable(key_file, "the private key is encrypted; give one without a passphrase") from error
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(key_file, f"the private key is not the key of the certificate in {cert_file}") from error
        # One message for both files: if the certificate can be read, it was the key.
        _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert_file)
        raise _unusable(key_file, "the private key file holds no private key in PEM form") from error


def _load_authorities(context: ssl.SSLContext, ca_file: Path) -> None:
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise _unusable(ca_file, "the certificate file holds no certificate in PEM form") from error


def _unusable(file: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(file))


def client_context(
    *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """Make a client's TLS context, with the system's CAs or `ca_file`."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN_H2])
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context


class TlsSession:
    """One connection's TLS state; `open` and `seal` do no I/O and raise ssl.SSLError."""

    __slots__ = ("_fruitless", "_incoming", "_object", "_outgoing", "ended")

    def __init__(
        self, context: ssl.SSLContext, *, server_hostname: str | None = None, server_side: bool = True
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._fruitless = 0
        self.ended = False
        """The peer has said close_notify: it is at its end, whatever more its socket brings."""

    async def handshake(self, sock: socket.socket, head: bytes = b"") -> None:
        """Do the TLS handshake on `sock`, or send an alert and raise. Raises OSError."""
        self._incoming.write(head)
        try:
            while True:
                try:
                    self._object.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    pass
                await self._flush(sock)
                await trio.lowlevel.wait_readable(sock)
                self._feed(sock)
        finally:
            # The last flight of a success, or the alert of a failure. It fits the socket's empty
            # buffer.
            rest = self._outgoing.read()
            if rest:
                try:
                    sock.send(rest)
                except OSError:
                    pass  # the peer does not listen any more; nothing is lost that it would read

    async def _flush(self, sock: socket.socket) -> None:
        data = memoryview(self._outgoing.read())
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)

    def _feed(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_RECORDS_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the peer ended the connection during the TLS handshake")
        self._incoming.write(data)

    def seal(self, data: bytes) -> bytes:
        """Encrypt `data` into TLS records, behind whatever else TLS has to send."""
        rest = memoryview(data)
        while rest:
            # OpenSSL may take one record of 16 KiB at a time.
            rest = rest[self._object.write(rest) :]
        return self._outgoing.read()

    def open(self, data: bytes) -> bytes:
        """Decrypt TLS records; return b"" without a complete one, or at the end (`ended`).

        What follows the peer's close_notify is dropped (RFC 8446 section 6.1): OpenSSL keeps it.
        """
        if self.ended:
            return b""
        self._incoming.write(data)
        chunks = []
        try:
            while chunk := self._object.read(_READ_BYTES):
                chunks.append(chunk)
            self._end()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end()
        if chunks:
            self._fruitless = 0
        else:
            self._fruitless += len(data)
            if self._fruitless > _FRUITLESS_BYTES:
                raise ssl.SSLError("the peer sent too many TLS records without data")
        if self._outgoing.pending > _UNASKED_BYTES:
            raise ssl.SSLError("the peer asked for too many TLS key updates")
        return b"".join(chunks)

    def _end(self) -> None:
        self.ended = True
        self._incoming.read()

    @property
    def alpn(self) -> str | None:
        return self._object.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        return self._object.version()

    def peer_certificate(self) -> PeerCertificate | None:
        """Return what the peer's verified certificate says; None when it showed none."""
        certificate: dict[str, Any] | None = self._object.getpeercert()
        if not certificate:
            return None
        names = [value for pairs in certificate.get("subject", ()) for key, value in pairs if key == "commonName"]
        encoded = self._object.getpeercert(binary_form=True) or b""
        problem = client_problem(encoded)
        if not problem and len(names) > 1:
            problem = "it has several common names, and it is not clear which of them counts"
        return PeerCertificate(
            common_name=names[0] if names else "",
            dns_names=tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"),
            serial_number=certificate.get("serialNumber", ""),
            problem=problem,
            issuer=issuer_of(encoded),
            not_after_ms=int(ssl.cert_time_to_seconds(certificate["notAfter"])) * 1000,
        )
