"""Encrypts the secrets of webhooks, so that no copy of the database has them.

The key is derived from the newest of auth.token_hmac_keys (services/tokens/keys.py), which the
database does not have. What is encrypted is bound to the webhook: in another row it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NEW_BYTES: Final = 32
_PURPOSE: Final = b"webhook secrets"
_NONCE_BYTES: Final = 12


class SecretKeyError(Exception):
    """Secrets cannot be encrypted or read; the text says what to do."""


class SecretKeys(Protocol):
    """The keys of auth.token_hmac_keys, by their ids; the newest is for new secrets."""

    @property
    def newest(self) -> str | None: ...

    def has(self, key_id: str) -> bool:
        """Whether a key with this id is known."""

    def derived(self, key_id: str, purpose: bytes) -> bytes:
        """Return 32 bytes that follow from a key, for a purpose."""


class WebhookSecrets:
    """Encrypts and reads the secrets of webhooks; `keys` returns the keys of now."""

    def __init__(self, keys: Callable[[], SecretKeys]) -> None:
        self._keys = keys

    def encrypt(self, place: str, secrets: Sequence[bytes]) -> tuple[str, bytes]:
        """Return the id of the key, and the encrypted secrets. Raises SecretKeyError."""
        keys = self._keys()
        if keys.newest is None:
            raise SecretKeyError("a webhook's secrets are encrypted with a key: set auth.token_hmac_keys")
        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(keys.derived(keys.newest, _PURPOSE))
        return keys.newest, nonce + cipher.encrypt(nonce, msgspec.msgpack.encode(list(secrets)), place.encode())

    def read(self, place: str, key_id: str, encrypted: bytes) -> list[bytes]:
        """Return the secrets of a webhook. Raises SecretKeyError."""
        keys = self._keys()
        if not keys.has(key_id):
            raise SecretKeyError(f"auth.token_hmac_keys has no key {key_id} any more: apply the webhook with secrets")
        nonce, text = encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:]
        try:
            plain = AESGCM(keys.derived(key_id, _PURPOSE)).decrypt(nonce, text, place.encode())
        except InvalidTag:
            raise SecretKeyError(f"the secrets were not encrypted with the key {key_id} of now") from None
        return msgspec.msgpack.decode(plain, type=list[bytes])


def new_secret() -> bytes:
    """Make a secret."""
    return os.urandom(NEW_BYTES)
