"""Tracks the messages sent to a WebSocket client until it acknowledges them.

The client says `{"deliveries": {"done": 42, "messages": 1000, "bytes": 4194304}}`: it has processed
the first 42 deliveries of this connection, and holds at most so many messages and bytes
beyond them. Nothing is delivered before its first statement; the latest counts.

Invariants: a position moves by `acknowledged` alone, in the order of the deliveries; what is on its
way exceeds `bytes` by one message at most, and `messages` never, unless the client lowers them; nor
does it exceed MOST_NOT_DONE messages.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from aether_trio.model.errors import Status, StatusError

if TYPE_CHECKING:
    from aether_trio.delivery.outbox_subscription import Origin

SUBPROTOCOL: Final = "aether.v1.json.acks"
"""JSON, with deliveries that are acknowledged."""

MOST_NOT_DONE: Final = 16_384
"""Most deliveries that a client has not acknowledged; each costs some hundred bytes."""
_MARK: Final = b'"deliveries"'
_MARK_WITHIN: Final = 64
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    done: _Count
    messages: _Count
    bytes: _Count


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deliveries: _Statement


_decode: Final = msgspec.json.Decoder(_Message).decode


def is_statement(data: bytes) -> bool:
    """Return whether a client's JSON, right or wrong, acknowledges deliveries."""
    head = data[:_MARK_WITHIN]
    return _MARK in head and head.split(_MARK, 1)[0].strip() == b"{"


class Deliveries:
    """The messages sent to one WebSocket client that it has not acknowledged yet."""

    __slots__ = ("_bytes", "_done", "_log", "_max_bytes", "_max_messages", "_open", "_sent")

    def __init__(self, log: str) -> None:
        self._log = msgspec.json.encode(log)
        self._open: deque[tuple[Origin, int, int]] = deque()
        self._bytes = 0
        self._sent = self._done = 0
        self._max_messages = self._max_bytes = 0

    @property
    def room(self) -> tuple[int, int]:
        """How many messages, and bytes, may be sent now; (0, 0) for none."""
        messages, size = min(self._max_messages, MOST_NOT_DONE) - len(self._open), self._max_bytes - self._bytes
        return (messages, size) if messages > 0 and size > 0 else (0, 0)

    def deliver(self, encoded: bytes, origin: Origin, offset: int, size: int) -> bytes:
        """Count a message of `size` bytes as sent; return it as JSON, with its offset."""
        self._open.append((origin, offset, size))
        self._bytes += size
        self._sent += 1
        topic = msgspec.json.encode(origin.topic)
        return b'%s,"delivery":{"topic":%s,"log":%s,"offset":%d}}' % (encoded[:-1], topic, self._log, offset)

    def stated(self, data: bytes) -> list[tuple[Origin, int]]:
        """Apply a client's acknowledgement and return what it covers. Raises StatusError."""
        try:
            said = _decode(data).deliveries
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise StatusError(Status.INVALID_ARGUMENT, f"deliveries: not a valid acknowledgement: {error}") from None
        if not self._done <= said.done <= self._sent:
            text = f"deliveries.done: {said.done} is not between {self._done}, said before, and {self._sent}, delivered"
            raise StatusError(Status.INVALID_ARGUMENT, text)
        last: dict[Origin, int] = {}
        found: list[tuple[Origin, int]] = []
        for _ in range(said.done - self._done):
            origin, offset, size = self._open.popleft()
            self._bytes -= size
            if origin.shared:
                found.append((origin, offset))
            else:
                last[origin] = offset
        self._done = said.done
        self._max_messages, self._max_bytes = said.messages, said.bytes
        return [*found, *last.items()]
