"""Levels of access that rules and grants give, as stored and on the wire.

Rules and grants carry the integers; only authority requests carry the wire's enum (core.md section
0.4).
"""

from __future__ import annotations

import enum


class AccessLevel(enum.IntEnum):
    """A level of access of a rule or grant; each level includes those below it."""

    NONE = 0
    READ = 10
    READWRITE = 20
    MANAGE = 30
    ADMIN = 40
    SUPERADMIN = 50

    @classmethod
    def from_wire(cls, value: int) -> AccessLevel:
        """Return the level of a wire AccessLevel, 1 (none) to 6; ValueError for others."""
        if not 1 <= value <= len(cls):
            raise ValueError(f"{value} is not an access level: expected 1 (none) to {len(cls)} (superadmin)")
        return cls((value - 1) * 10)

    @property
    def wire(self) -> int:
        """The wire AccessLevel (protobuf enum value) of this level."""
        return self // 10 + 1
