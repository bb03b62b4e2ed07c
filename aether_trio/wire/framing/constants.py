"""The constants of the binary framing, as in the tables of docs/wire.md.

All integers on the wire are big-endian. Sequence numbers and offsets are signed 64-bit and
positive, so that languages without unsigned integers can hold them.
"""

from __future__ import annotations

import enum
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAGIC: Final = b"\xaeAETHER"
"""No letter first (HTTP), no TLS record type (0x14-0x18), no UTF-8 lead byte."""
MAJOR: Final = 1
"""Version of the layout (preface, header, HELLO); `minor` and frame types change the rest."""
MINOR: Final = 0
PREFACE: Final = MAGIC + bytes((MAJOR,))

HEADER_BYTES: Final = 6
"""u32 length of what follows the header, u8 type, u8 flags."""

FIRST_OPTIONAL_TYPE: Final = 0x80
"""Frames of unknown types from here on are skipped; below, they are an error."""


class FrameType(enum.IntEnum):
    """The type byte of a frame of the binary framing."""

    HELLO = 0x01
    SEND = 0x02
    DELIVER = 0x03
    ACK = 0x04
    NACK = 0x05
    DELIVERED = 0x06
    CREDIT = 0x07
    ENVELOPE = 0x08
    PING = 0x09
    PONG = 0x0A
    GOAWAY = 0x0B
    ERROR = 0x0C
    CHANNEL = 0x0D


class Flag(enum.IntFlag):
    """The bits of a frame's flags byte; their meaning depends on the frame's type."""

    FROM_SERVER = 0x01
    """HELLO: the server's map."""
    RETRYABLE = 0x01
    """NACK, ERROR: the same may work later without being changed."""
    CLOSED = 0x01
    """CHANNEL: the number is not used any more."""
    SHARED = 0x02
    """CHANNEL: a work group's topic. Offsets may go back, and are acknowledged one by one."""


class ErrorCode(enum.IntEnum):
    """Codes of ERROR frames for mistakes in the framing; below 256 are gRPC statuses."""

    BAD_PREFACE = 0x100
    UNSUPPORTED_VERSION = 0x101
    FRAME_TOO_LARGE = 0x102
    UNKNOWN_FRAME = 0x103
    MALFORMED = 0x104
    BAD_HELLO = 0x105
    ILLEGAL_FRAME = 0x106
    BAD_SEQUENCE = 0x107
    BAD_CHANNEL = 0x108
    BAD_OFFSET = 0x109
    BAD_CREDIT = 0x10A
    TRUNCATED = 0x10B
    CALM = 0x10C
    TIMEOUT = 0x10D


class GoAwayReason(enum.IntEnum):
    """Why a side leaves a framed connection; an unknown number means LEAVING."""

    LEAVING = 0
    DRAINING = 1
    TOO_OLD = 2
    """The connection has reached the age that the gateway's settings allow."""


MAX_HELLO_BYTES: Final = 4 * KIB
"""Read before the client is authenticated. The fields of version 1.0 need at most 450 bytes."""
MAX_HELLO_NESTING: Final = 16
"""Arrays and maps inside each other in a HELLO; the known keys need one."""
OPENING_FRAME_BYTES: Final = 512 * KIB
"""The longest frame of a client that is not accepted yet; InitConnection has 400 KiB at most."""
LEAST_MAX_FRAME_BYTES: Final = 4 * MIB
"""Every side accepts frames of this length, so accepted messages fit every receiver."""
DEFAULT_MAX_FRAME_BYTES: Final = 10 * MIB
"""As the gRPC transport's cap of a message from a client."""
MAX_FRAME_BYTES: Final = 2**31 - 1
"""What a signed 32-bit length can say."""

MAX_CODE_BYTES: Final = 64
MAX_TEXT_BYTES: Final = 1 * KIB
"""Explanations are for people; encoders cut them, decoders refuse longer ones."""
MAX_AGENT_BYTES: Final = 256
MAX_LOG_BYTES: Final = 64
"""Of the name of a log."""
PUBLISHER_BYTES: Final = 16
MAX_CHANNELS: Final = 1024
"""Open at once in one connection. A participant has fewer than ten."""
DEFAULT_PUBLISH_WINDOW: Final = 4096
"""Sends that may wait for their ACK: at 10 ms from send to commit that is 400,000 a second."""
MAX_PUBLISH_WINDOW: Final = 1 << 20
MAX_CREDIT: Final = 2**62
"""Of messages and of bytes; a balance may not grow beyond it."""
MAX_INT64: Final = 2**63 - 1
MAX_UINT32: Final = 2**32 - 1
MAX_UINT16: Final = 2**16 - 1
