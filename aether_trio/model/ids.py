"""Made-up ids from one source of randomness, so that a seeded run makes the same ids again."""

from __future__ import annotations

import random
import uuid


class IdFactory:
    """Makes ids from the given `Random`.

    A session id is a secret (who knows it may take the session over), so a gateway that serves strangers gives
    `random.SystemRandom()`. Tests and simulations give `random.Random(seed)`.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random

    def session_id(self) -> str:
        """A new session's id: the text of a version 4 UUID, unguessable when the source is."""
        return self._uuid()

    def unique(self) -> str:
        """An id that meets no other, as the text of a version 4 UUID: non-unique tasks, messages, subscriptions."""
        return self._uuid()

    def short(self) -> str:
        """Eight hexadecimal digits, for names that people read. Two of 10,000 collide with a chance of about 1 in 86."""
        return f"{self._random.getrandbits(32):08x}"

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))
