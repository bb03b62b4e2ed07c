"""Checks that a verified TLS certificate is a client's, and finds its issuer.

OpenSSL takes an authority's certificate for a client's, so the holder of its key could take any
name. Python's ssl gives out no extensions (RFC 5280 section 4.2.1), so they are read here from DER.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

_BOOLEAN: Final = 0x01
_OBJECT_ID: Final = 0x06
_OCTETS: Final = 0x04
_SEQUENCE: Final = 0x30
_EXTENSIONS: Final = 0xA3
"""The context tag [3] of a TBSCertificate."""
_BASIC_CONSTRAINTS: Final = bytes.fromhex("551d13")
_EXTENDED_KEY_USAGE: Final = bytes.fromhex("551d25")
_CLIENT_AUTH: Final = bytes.fromhex("2b06010505070302")


class _DerError(ValueError):
    """Raised for bytes that are not DER, or not a certificate."""


def client_problem(certificate: bytes) -> str:
    """Return why a DER certificate is no client's (the end of a sentence), or ""."""
    try:
        for object_id, value in _extensions(certificate):
            if object_id == _BASIC_CONSTRAINTS and _says_authority(value):
                return "it is an authority's (basicConstraints CA:TRUE), and only a certificate that it has issued is a client's"
            if object_id == _EXTENDED_KEY_USAGE and _CLIENT_AUTH not in _object_ids(value):
                return "it is not meant for clients (extendedKeyUsage is without clientAuth)"
    except _DerError:
        return "it cannot be read"
    return ""


def issuer_of(certificate: bytes) -> bytes:
    """Return the SHA-256 of a DER certificate's issuer name; b"" if it cannot be read."""
    try:
        to_be_signed = next(value for tag, value in _elements(_only(certificate, _SEQUENCE)) if tag == _SEQUENCE)
        # In order: [0] version, serial number, algorithm, issuer, ...
        _, issuer, *_ = [value for tag, value in _elements(to_be_signed) if tag == _SEQUENCE]
    except (_DerError, StopIteration, ValueError):
        return b""
    return hashlib.sha256(issuer).digest()


def name_digest(name: bytes) -> bytes:
    """Return the SHA-256 of a name in DER, as `issuer_of` does."""
    return hashlib.sha256(_only(name, _SEQUENCE)).digest()


def _extensions(certificate: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (object id, value) of each extension of a DER certificate."""
    body = _only(certificate, _SEQUENCE)
    to_be_signed = next((value for tag, value in _elements(body) if tag == _SEQUENCE), b"")
    for tag, value in _elements(to_be_signed):
        if tag != _EXTENSIONS:
            continue
        for kind, extension in _elements(_only(value, _SEQUENCE)):
            fields = dict(_elements(extension)) if kind == _SEQUENCE else {}
            if _OBJECT_ID not in fields or _OCTETS not in fields:
                raise _DerError
            yield fields[_OBJECT_ID], fields[_OCTETS]


def _says_authority(value: bytes) -> bool:
    return any(tag == _BOOLEAN and content != b"\0" for tag, content in _elements(_only(value, _SEQUENCE)))


def _object_ids(value: bytes) -> list[bytes]:
    return [content for tag, content in _elements(_only(value, _SEQUENCE)) if tag == _OBJECT_ID]


def _only(data: bytes, wanted: int) -> bytes:
    """Return the content of the only DER element in `data`."""
    found = list(_elements(data))
    if len(found) != 1 or found[0][0] != wanted:
        raise _DerError
    return found[0][1]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, content) of the DER elements that follow each other."""
    position = 0
    while position < len(data):
        if position + 2 > len(data):
            raise _DerError
        tag, size = data[position], data[position + 1]
        position += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[position : position + count], "big")
            position += count
        if position + size > len(data):
            raise _DerError
        yield tag, data[position : position + size]
        position += size
