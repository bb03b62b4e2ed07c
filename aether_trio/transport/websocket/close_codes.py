"""Maps the status of a stream's end to a WebSocket close code.

1000: a clean end. 1002, 1003, 1007, 1009: as in the RFC. 4100 + gRPC status: connect again, as the
gateway or this connection had to stop. 4200 + gRPC status: the next attempt would end alike.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.errors import RETRYABLE_STATUSES, Status

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
INVALID_TEXT: Final = 1007
RECONNECT: Final = 4100
STAY_AWAY: Final = 4200

REASON_BYTES: Final = 123
"""A control frame holds 125 bytes, of which the code takes two (RFC 6455 section 5.5)."""


def close_code(status: Status) -> int:
    """Return the WebSocket close code for the status that ended a stream."""
    if status is Status.OK:
        return NORMAL
    return (RECONNECT if status in RETRYABLE_STATUSES else STAY_AWAY) + status


def close_reason(text: str) -> str:
    """Cut the text of a close frame to REASON_BYTES of UTF-8, at a character."""
    data = text.encode("utf-8", "replace")
    return data[:REASON_BYTES].decode("utf-8", "ignore")
