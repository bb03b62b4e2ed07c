"""Access levels, as rules and grants have them.

Rules and grants carry the integers; only authority requests carry the wire's enum (core.md section
0.4).
"""

from __future__ import annotations

import enum


class AccessLevel(enum.IntEnum):
    """What a rule allows, in order: a level includes all levels below it.

    The gaps between the numbers are those of the protocol.
    """

    NONE = 0
    READ = 10
    READWRITE = 20
    MANAGE = 30
    ADMIN = 40
    SUPERADMIN = 50

    @classmethod
    def from_wire(cls, value: int) -> AccessLevel:
        """The level of an AccessLevel enum value, 1 (none) to 6 (superadmin).

        Raises ValueError for 0, which says that the sender did not set it, and for values of a
        later protocol.
        """
        if not 1 <= value <= len(cls):
            raise ValueError(f"{value} is not an access level: expected 1 (none) to {len(cls)} (superadmin)")
        return cls((value - 1) * 10)

    @property
    def wire(self) -> int:
        """The protocol's AccessLevel enum value."""
        return self // 10 + 1
