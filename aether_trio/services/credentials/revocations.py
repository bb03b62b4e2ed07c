"""Reads certificate revocation lists: which client certificates are revoked.

A list counts for its issuer's certificates, and only when an authority of tls.client_ca has signed
it. A list that is out of date still counts: what it revokes stays revoked, and the log says that a
newer one is due.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aether_trio.config import TlsSettings
from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.client_certificates import name_digest

logger = structlog.get_logger("aether.credentials")

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"


class RevokedCertificates:
    """The serial numbers of revoked client certificates, by their issuer."""

    def __init__(self, serials: Iterable[tuple[bytes, str]]) -> None:
        self._serials = frozenset(serials)

    def __len__(self) -> int:
        return len(self._serials)

    def has(self, certificate: PeerCertificate) -> bool:
        """Whether a list names this certificate."""
        return (certificate.issuer, _hexadecimal(certificate.serial_number)) in self._serials


def _hexadecimal(serial: str) -> str:
    return serial.lstrip("0").upper()


def read_revocations(tls: TlsSettings, now_ms: int) -> RevokedCertificates:
    """Read tls.client_crl. Raises OSError, which names the file."""
    assert tls.client_crl is not None
    path = Path(tls.client_crl)
    authorities = _authorities(Path(tls.client_ca)) if tls.client_ca else []
    serials: list[tuple[bytes, str]] = []
    try:
        for number, one in enumerate(_lists(path.read_bytes()), 1):
            if not any(_signed_by(one, authority) for authority in authorities):
                raise ValueError(f"no authority of tls.client_ca has signed list {number} in it")
            due = one.next_update_utc
            if due is not None and due.timestamp() * 1000 < now_ms:
                logger.warning("a list of revoked certificates is out of date", file=str(path), due=due.isoformat())
            issuer = name_digest(one.issuer.public_bytes())
            serials += [(issuer, _hexadecimal(f"{entry.serial_number:X}")) for entry in one]
    except ValueError as error:
        raise OSError(errno.EINVAL, f"cannot be used as a list of revoked certificates: {error}", str(path)) from None
    return RevokedCertificates(serials)


def lists_due(path: Path) -> float | None:
    """Return when the first newer list is due (Unix time, s); None without one."""
    try:
        found = _lists(path.read_bytes())
    except ValueError as error:
        raise OSError(errno.EINVAL, f"cannot be used as a list of revoked certificates: {error}", str(path)) from None
    return min((one.next_update_utc.timestamp() for one in found if one.next_update_utc is not None), default=None)


def trusted_authorities(path: Path) -> list[tuple[bytes, bytes]]:
    """Return (digest of the name, public key) of a file's authorities. Raises OSError."""
    return [
        (
            name_digest(one.subject.public_bytes()),
            one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        )
        for one in _authorities(path)
    ]


def _authorities(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise OSError(errno.EINVAL, f"holds no certificates: {error}", str(path)) from None


def _lists(content: bytes) -> list[x509.CertificateRevocationList]:
    if _BEGIN not in content:
        return [x509.load_der_x509_crl(content)]
    parts = content.split(_BEGIN)[1:]
    return [x509.load_pem_x509_crl(_BEGIN + part.partition(_END)[0] + _END + b"\n") for part in parts]


def _signed_by(one: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if one.issuer != authority.subject or not isinstance(
        key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    ):
        return False
    try:
        return one.is_signature_valid(key)
    except (InvalidSignature, TypeError, ValueError):
        return False
