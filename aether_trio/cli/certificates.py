"""Makes a private authority and its certificates, for `aether init`.

All keys are ECDSA P-256, unencrypted PKCS #8. The authority lasts ten years and issues no further
authorities, a server's certificate and a client's last a year. A client's common name is the
identity that it may claim (docs/security.md).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_NAME: Final = "Aether CA"
SERVER_NAME: Final = "aether-gateway"
ALWAYS_NAMED: Final = ("localhost", SERVER_NAME, "127.0.0.1", "::1")
AUTHORITY_DAYS: Final = 3652
YEAR_DAYS: Final = 365
MAX_NAME: Final = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""
_CLOCK_SKEW: Final = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def make_authority(now: dt.datetime) -> KeyPair:
    """Make a self-signed authority for server and client certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(AUTHORITY_NAME)
    builder = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _signed(builder, key, key)


def make_server(authority: KeyPair, names: Sequence[str], now: dt.datetime) -> KeyPair:
    """Make a gateway's certificate for these host names and addresses, and local ones."""
    every = dict.fromkeys((*ALWAYS_NAMED, *names))
    alternatives = x509.SubjectAlternativeName([_alternative(one) for one in every])
    return _leaf(authority, SERVER_NAME, ExtendedKeyUsageOID.SERVER_AUTH, now, alternatives)


def make_client(authority: KeyPair, name: str, now: dt.datetime) -> KeyPair:
    """Make a client's certificate. Raises ValueError for a name that is too long."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a certificate's name has at most {MAX_NAME} characters, and {name!r} has {len(name)}")
    return _leaf(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, now, None)


def _leaf(
    authority: KeyPair,
    name: str,
    purpose: x509.ObjectIdentifier,
    now: dt.datetime,
    alternatives: x509.SubjectAlternativeName | None,
) -> KeyPair:
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not one that `aether init` has made (ECDSA)")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(name), issuer.subject, key, now, YEAR_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _signed(builder, signer, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePrivateKey
) -> KeyPair:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(builder.sign(signer, hashes.SHA256()).public_bytes(pem), secret)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return x509.DNSName(text)
