"""Who may connect: checker.py judges what is shown, throttle.py keeps those out for a while who show the wrong thing."""

from aether_trio.services.credentials.checker import (
    ANYBODY,
    KEY_PREFIX,
    Accepted,
    CertificateMode,
    CredentialChecker,
    find_key,
    hash_api_key,
    new_api_key,
    parse_common_name,
)

__all__ = [
    "ANYBODY",
    "KEY_PREFIX",
    "Accepted",
    "CertificateMode",
    "CredentialChecker",
    "find_key",
    "hash_api_key",
    "new_api_key",
    "parse_common_name",
]
