"""Ids from one source of randomness: a seeded run makes the same ids again."""

from __future__ import annotations

import random
import uuid


class IdFactory:
    """Makes ids from the given `Random`.

    A session id is a secret: a client that knows it may take the session over. So a gateway gives
    `random.SystemRandom()`. Tests and simulations give `random.Random(seed)`.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random

    def session_id(self) -> str:
        """Make a session id: a version 4 UUID, unguessable when the source is."""
        return self._uuid()

    def unique(self) -> str:
        """Make an id that no other id equals, as the text of a version 4 UUID.

        For non-unique tasks, messages and subscriptions.
        """
        return self._uuid()

    def dated(self, now_ms: int) -> str:
        """Make an id that no other id equals, as the text of a version 7 UUID (RFC 9562).

        It begins with this moment (Unix ms). For rows by the million: rows that are written and
        changed at one time lie on a few pages of an index then.
        """
        bits = self._random.getrandbits(74)
        moment = f"{now_ms & 0xFFFFFFFFFFFF:012x}"
        rest = f"{0x7000 | bits >> 62:04x}{1 << 63 | bits & 0x3FFFFFFFFFFFFFFF:016x}"
        return f"{moment[:8]}-{moment[8:]}-{rest[:4]}-{rest[4:8]}-{rest[8:]}"

    def short(self) -> str:
        """Make a name that people read, of eight hexadecimal digits.

        Two of 10,000 collide with a chance of about 1 in 86.
        """
        return f"{self._random.getrandbits(32):08x}"

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))
