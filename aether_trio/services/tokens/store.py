"""Finds API tokens for connecting clients, and notes when each was last used.

Tokens that were found are remembered, and forgotten with each change of them on any node, before
the change is answered. So a client that reconnects costs no query.

Last uses are written each FLUSH_S. What was noted since is lost in a crash: the time is
information, and never a right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.api_tokens import ApiToken
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError
from aether_trio.services.tokens import rows
from aether_trio.services.tokens.keys import HmacKeys
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.tokens")

FLUSH_S: Final = 10.0
REMEMBERED: Final = 10_000
"""Tokens in memory, of about 1 KiB each."""
MAX_WAITING: Final = 50_000
"""Tokens whose last use waits for storage; beyond it, further ones are not noted."""


class TokenStore:
    """The API tokens of a gateway, as far as connecting clients need them."""

    def __init__(self, database: Database, clock: Clock, keys: HmacKeys) -> None:
        self._database = database
        self._clock = clock
        self._keys = keys
        self._known: OrderedDict[bytes, ApiToken] = OrderedDict()
        """By the SHA-256 of their text: the table has another hash, with a secret key."""
        self._changes = 0
        self._waiting: dict[str, int] = {}
        self._work = AutoResetEvent()

    @property
    def keys(self) -> HmacKeys:
        """The secret keys; new settings may replace them."""
        return self._keys

    @keys.setter
    def keys(self, keys: HmacKeys) -> None:
        self._keys = keys
        self._forget_all()

    def changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        """Forget tokens that were changed; `everything`: any may have been."""
        if everything:
            self._forget_all()
            return
        self._changes += 1
        ids = {token_id for token_id, _ in items}
        for hashed in [one for one, token in self._known.items() if token.token_id in ids]:
            del self._known[hashed]

    def _forget_all(self) -> None:
        self._changes += 1
        self._known.clear()

    def has_key(self, key_id: str) -> bool:
        """Whether the secret key with this id is among the settings."""
        return self.keys.has(key_id)

    def known(self, text: str) -> ApiToken | None:
        """Return the token with this text, used now, if it is in memory."""
        token = self._known.get(_digest(text))
        if token is not None:
            self._note_use(token)
        return token

    async def find(self, text: str) -> ApiToken | None:
        """Return the token with this text, used now; None for none. Raises StatusError.

        A row whose hash or seal does not fit its key is no token: it was written by another hand.
        """
        token = self.known(text)
        if token is None and len(self._keys):
            token = await self._read(self._keys, text)
            if token is not None:
                self._note_use(token)
        return token

    def _note_use(self, token: ApiToken) -> None:
        now_ms = self._clock.now_ms()
        if token.ended(now_ms) is None and (token.token_id in self._waiting or self._has_room):
            self._waiting[token.token_id] = now_ms
            self._work.set()

    async def _read(self, keys: HmacKeys, text: str) -> ApiToken | None:
        changes, hashes = self._changes, keys.hashes(text)
        try:
            row = await self._database.read_small(partial(rows.by_hash, tuple(hashes)))
        except StorageUnavailable as error:
            raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
        if row is None:
            return None
        if not keys.has(row.key_id):
            logger.error(
                "an API token's row names a key that auth.token_hmac_keys has not under this id; it admits no client",
                id=row.token.token_id,
                key=row.key_id,
            )
            return None
        if hashes.get(row.token_hash) != row.key_id or not hmac.compare_digest(
            keys.seal(row.key_id, row.token_hash, row.token), row.seal
        ):
            logger.error("an API token's row was changed by another hand, and admits no client", id=row.token.token_id)
            return None
        if changes == self._changes:  # else it may have been changed since it was read
            self._known[_digest(text)] = row.token
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return row.token

    @property
    def _has_room(self) -> bool:
        return len(self._waiting) < MAX_WAITING

    def load_live(self) -> Program[list[tuple[str, object]]]:
        """Read all tokens that are not revoked, as items of a change."""
        return rows.live()

    async def run(self) -> None:
        """Write last uses until cancelled."""
        while True:
            if not self._waiting:
                await self._work.wait()
            await trio.sleep(FLUSH_S)
            await retry_while_unavailable(self._flush, "writing the last uses of API tokens", logger)

    async def flush_at_end(self) -> None:
        """Write the last uses that wait, or log that they are lost."""
        try:
            await self._flush()
        except StorageUnavailable as error:
            logger.warning("last uses of API tokens are lost: storage is unavailable", reason=str(error))

    async def _flush(self) -> None:
        waiting = list(self._waiting.items())
        if not waiting:
            return
        await self._database.run(partial(rows.used, waiting))
        for token_id, at_ms in waiting:
            if self._waiting.get(token_id) == at_ms:
                del self._waiting[token_id]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
