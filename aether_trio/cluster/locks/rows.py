"""What the directory tells of holds, whichever node has them. Times are Unix milliseconds of the database server's clock."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LockRow:
    """A live hold. `place` is the workspace that the participant is in; `written_ms` is when that or the hold was written."""

    identity: str
    session_id: str
    place: str
    connected_ms: int
    peer: str
    node_id: int
    written_ms: int


@dataclass(frozen=True, slots=True)
class LastHeld:
    """`last_ms` is when the live hold was written, or the last one ended as far as is remembered; 0 for never."""

    now: bool
    last_ms: int


class EndOfSession(enum.Enum):
    """What became of the wish to end a session of another node."""

    DONE = "done"
    """Its node has ended it."""
    GONE = "gone"
    """It came to an end otherwise."""
    UNCONFIRMED = "unconfirmed"
    """Its node has not answered in time."""
