"""The secret keys under which API tokens are stored, and their hashes.

A token's hash is HMAC-SHA256(key, text): a thief of the database can neither use a token nor guess
one, and cannot add one without the key. The seal is the HMAC of what the row says, so a row cannot
be made to reach more either. Both begin with a different word, so neither is ever the other.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aether_trio.config import AuthSettings
from aether_trio.model.api_tokens import ApiToken

KEY_BYTES: Final = 32
DEV_KEY_ID: Final = "dev"
_DEV_KEY: Final = hashlib.sha256(b"aether dev asks for no credentials, so its key is no secret").digest()
_HASH: Final = b"aether token\0"
_SAME: Final = b"aether token key\0"
_SEAL: Final = b"aether token record\0"


class HmacKeys:
    """Keys by their id; the first is for new tokens."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        # Copied for each use. hmac.digest gives up the interpreter's lock and waits for it.
        self._keys = {key_id: hmac.new(key, digestmod="sha256") for key_id, key in keys.items()}

    def __len__(self) -> int:
        return len(self._keys)

    def _mac(self, key_id: str, message: bytes) -> bytes:
        mac = self._keys[key_id].copy()
        mac.update(message)
        return mac.digest()

    def derived(self, key_id: str, purpose: bytes) -> bytes:
        """Return 32 bytes that only who has the key knows, for another purpose."""
        return self._mac(key_id, b"aether derived\0" + purpose)

    @property
    def newest(self) -> str | None:
        """The id of the key for new tokens; None without keys."""
        return next(iter(self._keys), None)

    def hash(self, key_id: str, text: str) -> bytes:
        """Return the hash of a token's text under a key."""
        return self._mac(key_id, _HASH + text.encode())

    def hashes(self, text: str) -> dict[bytes, str]:
        """Return the ids of all keys by the hash of a token's text under each."""
        return {self.hash(key_id, text): key_id for key_id in self._keys}

    def seal(self, key_id: str, token_hash: bytes, token: ApiToken) -> bytes:
        """Return the seal of a token's row."""
        said = [
            token.token_id,
            token_hash.hex(),
            token.name,
            token.principal_type,
            token.principal_id,
            token.workspace_patterns,
            token.scopes,
            token.maker,
            token.created_ms,
            token.expires_ms,
        ]
        return self._mac(key_id, _SEAL + json.dumps(said).encode())

    def replaced_by(self, other: HmacKeys) -> set[str]:
        """Return the ids under which others have another key."""
        return {one for one in self._keys if other.has(one) and self._mac(one, _SAME) != other._mac(one, _SAME)}

    def has(self, key_id: str) -> bool:
        """Whether a key with this id is known."""
        return key_id in self._keys


def read_hmac_keys(settings: AuthSettings, *, dev: bool = False) -> HmacKeys:
    """Read the files of auth.token_hmac_keys. Raises OSError, which names the file.

    In development mode without such keys a key that is no secret is used.
    """
    keys = {record.id: _read(Path(record.file)) for record in settings.token_hmac_keys}
    return HmacKeys(keys or ({DEV_KEY_ID: _DEV_KEY} if dev else {}))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if open_to_others(os.fstat(file.fileno())):
            raise OSError(errno.EPERM, "other users may read this secret; make its mode 0600", str(path))
        text = file.read(1024).strip()
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) < KEY_BYTES:
        raise OSError(errno.EINVAL, f"the file holds no base64 of {KEY_BYTES} bytes or more", str(path))
    return key


def open_to_others(status: os.stat_result) -> bool:
    """Say whether others may read a secret file, or its group may that of this user.

    A file of root may be read by its group: so Kubernetes gives secrets to a user that is not root
    (fsGroup). PostgreSQL has the same rule for its private key.
    """
    others = stat.S_IRWXG | stat.S_IRWXO
    if status.st_uid == 0 and os.geteuid() != 0:
        others &= ~stat.S_IRGRP
    return bool(status.st_mode & others)


def new_key_text(random_bytes: bytes) -> str:
    """Return the content of a file with a new key."""
    return base64.b64encode(random_bytes).decode() + "\n"
