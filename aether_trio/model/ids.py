"""Makes session ids and other ids from one source of randomness."""

from __future__ import annotations

import random
import uuid


class IdFactory:
    """Makes ids from a `Random`: a secure one for sessions, a seeded one in tests."""

    def __init__(self, random: random.Random) -> None:
        self._random = random

    def session_id(self) -> str:
        """Make a session id: a version 4 UUID, unguessable when the `Random` is."""
        return self._uuid()

    def unique(self) -> str:
        """Make a version 4 UUID for a task, message or subscription."""
        return self._uuid()

    def dated(self, now_ms: int) -> str:
        """Make a version 7 UUID for `now_ms`: rows of one time are neighbours in an index."""
        bits = self._random.getrandbits(74)
        moment = f"{now_ms & 0xFFFFFFFFFFFF:012x}"
        rest = f"{0x7000 | bits >> 62:04x}{1 << 63 | bits & 0x3FFFFFFFFFFFFFFF:016x}"
        return f"{moment[:8]}-{moment[8:]}-{rest[:4]}-{rest[4:8]}-{rest[8:]}"

    def short(self) -> str:
        """Make an 8-digit hexadecimal id for people; of 10,000 two collide once in 86."""
        return f"{self._random.getrandbits(32):08x}"

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))
