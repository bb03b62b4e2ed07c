"""Checks the credentials of connecting clients, and slows down guessing."""

from aether_trio.services.credentials.checker import (
    KEY_PREFIX,
    NO_CREDENTIAL,
    AcceptedCredential,
    CertificateMode,
    CredentialChecker,
    find_key,
    hash_api_key,
    new_api_key,
    parse_common_name,
)

__all__ = [
    "KEY_PREFIX",
    "NO_CREDENTIAL",
    "AcceptedCredential",
    "CertificateMode",
    "CredentialChecker",
    "find_key",
    "hash_api_key",
    "new_api_key",
    "parse_common_name",
]
