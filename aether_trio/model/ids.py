"""Makes session ids and other ids from one source of randomness."""

from __future__ import annotations

import random
from typing import Final

_VERSION_4: Final = 0x4000_8000_0000_0000_0000
"""Version and variant of a random UUID (RFC 9562 section 5.4)."""
_RANDOM_BITS: Final = (1 << 128) - 1 & ~0xF000_C000_0000_0000_0000


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
        bits = self._random.getrandbits(128) & _RANDOM_BITS | _VERSION_4
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
