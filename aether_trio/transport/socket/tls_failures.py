"""Logs why TLS with a client failed: the peer and the reason, in bounded lines."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.transport.socket.accepted import peer_of

log = logging.getLogger(__name__)

LINES_PER_MINUTE: Final = 30
"""Scanners of ports make one for each connection; further ones are counted."""

_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client showed no certificate (tls.require_client_cert)",
        "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust the authority of the gateway's certificate",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not accept the gateway's certificate",
        "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not accept the gateway's certificate",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client says that the gateway's certificate has expired",
        "UNSUPPORTED_PROTOCOL": "the client does not offer TLS 1.3",
        "TLSV1_ALERT_PROTOCOL_VERSION": "the client does not offer TLS 1.3",
    }
)
"""What OpenSSL's reasons mean, in words for an operator."""


def handshake_problem(error: OSError) -> str:
    """Return why a TLS handshake failed, as the end of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or ""  # only those of OpenSSL have one
        return _REASONS.get(reason, reason or str(error))
    if isinstance(error, ConnectionError):
        return "the client ended the connection, as one does that does not trust the gateway's certificate"
    return error.strerror or str(error) or type(error).__name__


class TlsFailures:
    """Logs failures of TLS, at most LINES_PER_MINUTE lines in a minute."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._minute_begun_s = now_s()
        self._lines = 0
        self._unsaid = 0

    def tell(self, sock: socket.socket, reason: str) -> None:
        """Log that TLS with the peer of a socket failed, and why."""
        now_s = self._now_s()
        if now_s - self._minute_begun_s >= 60:
            if self._unsaid:
                log.warning("TLS with %d more clients failed", self._unsaid)
            self._minute_begun_s, self._lines, self._unsaid = now_s, 0, 0
        if self._lines >= LINES_PER_MINUTE:
            self._unsaid += 1
            return
        self._lines += 1
        log.warning("TLS with %s failed: %s", peer_of(sock), reason)
