"""Number payloads, and find those lost, repeated or out of order.

A payload begins with a mark, its stream, its number in that stream and the nanosecond it was sent
(or was meant to be sent); the rest is filler. The mark makes it possible to look for the payload
where the last delivery of that size had it, and to parse the message only when it is not there.
"""

from __future__ import annotations

import struct

from bench import wire

HEAD = struct.Struct(">4sIQQ")
MARK = b"\xaeb1\x00"


def filler(payload_bytes: int) -> bytes:
    """The filler of a numbered payload of this size; raises ValueError."""
    if payload_bytes < HEAD.size:
        raise ValueError(f"a numbered payload needs {HEAD.size} bytes, not {payload_bytes}")
    return bytes(0x20 + index % 95 for index in range(payload_bytes - HEAD.size))


class PayloadReader:
    """Reads (stream, number, nanosecond) out of deliveries."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}  # message length → offset of the payload

    def read(self, message: bytes) -> tuple[int, int, int] | None:
        """Read (stream, number, nanosecond) of a delivery, or None of other messages."""
        size = len(message)
        at = self._known.get(size, -1)
        if at >= 0:
            mark, stream, number, stamp = HEAD.unpack_from(message, at)
            if mark == MARK:
                return stream, number, stamp
        at = wire.payload_at(message)
        if at < 0 or size - at < HEAD.size:
            return None
        mark, stream, number, stamp = HEAD.unpack_from(message, at)
        if mark != MARK:
            return None
        self._known[size] = at
        return stream, number, stamp


class Ledger:
    """What one receiver has seen of one stream of numbers 0, 1, 2, …"""

    __slots__ = ("_missing", "next", "out_of_order", "repeated")

    def __init__(self) -> None:
        self.next = 0
        self.repeated = 0
        self.out_of_order = 0
        self._missing: set[int] = set()

    def note(self, number: int) -> bool:
        """Count an arrival; True when it is the first of its number."""
        if number == self.next:
            self.next = number + 1
            return True
        if number > self.next:
            self._missing.update(range(self.next, number))
            self.next = number + 1
            return True
        if number in self._missing:
            self._missing.discard(number)
            self.out_of_order += 1
            return True
        self.repeated += 1
        return False

    def lost(self, sent: int) -> int:
        """How many numbers below `sent` have not arrived."""
        return len(self._missing) + max(0, sent - self.next)
