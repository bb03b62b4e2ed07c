"""Parse a client's protobuf message, within a bound on its number of fields.

A message of n bytes may hold n/2 empty messages, and protobuf makes an object of each: 10 MiB are
300 ms of the event loop. So the fields of long messages are counted before they are made.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage
from aether_trio.wire.undecodable import read_varint, undecodable

UNCOUNTED_BYTES: Final = 64 * 1024
"""The longest message whose fields are not counted: full of the smallest fields it takes 2 ms."""
MAX_FIELDS: Final = 8192
"""Fields of a longer message, nested ones included: counting takes 3 ms. A map entry is three."""

NUMBERS: Final = True
"""Stands for the type of a packed list: its numbers are counted as fields."""
_WITH_LENGTH: Final = frozenset({FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE})
_CONTINUED: Final = bytes(range(0x80, 0x100))
"""The bytes of a number but for its last one."""
_parse: Final = UpstreamMessage.FromString


def decode_upstream(data: bytes) -> UpstreamMessage:
    """Parse an UpstreamMessage; refuse too many fields. Raises StatusError."""
    if len(data) > UNCOUNTED_BYTES and too_many_fields(data, UpstreamMessage.DESCRIPTOR):
        raise StatusError(
            Status.INVALID_ARGUMENT, f"the message has more than {MAX_FIELDS} fields; send less in one message"
        )
    try:
        return _parse(data)
    except DecodeError as error:
        raise undecodable(data, error) from None


def too_many_fields(data: bytes, descriptor: Any) -> bool:
    """Whether a serialized message of this type has more than MAX_FIELDS fields."""
    parts = _parts_of(descriptor)
    enclosing: list[tuple[int, dict[int, Descriptor | bool]]] = []
    at, end, fields = 0, len(data), 0
    try:
        while True:
            while at >= end:
                if not enclosing:
                    return False
                end, parts = enclosing.pop()
            fields += 1
            if fields > MAX_FIELDS:
                return True
            tag, at = read_varint(data, at)
            kind = tag & 7
            if kind == 2:
                size, at = read_varint(data, at)
                part = parts.get(tag >> 3)
                if isinstance(part, Descriptor):
                    enclosing.append((end, parts))
                    end, parts = at + size, _parts_of(part)
                else:
                    if part is NUMBERS:
                        fields += max(len(data[at : at + size].translate(None, _CONTINUED)) - 1, 0)
                        if fields > MAX_FIELDS:
                            return True
                    at += size
            elif kind == 0:
                _, at = read_varint(data, at)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
    except IndexError:
        return False  # it ends too early, which the parser will say


@cache  # bounded by the number of message types
def _parts_of(descriptor: Descriptor) -> dict[int, Descriptor | bool]:
    """Return what is counted in fields with a length: messages, and lists of numbers."""
    return {
        field.number: field.message_type or NUMBERS
        for field in descriptor.fields
        if field.message_type is not None or (field.is_repeated and field.cpp_type not in _WITH_LENGTH)
    }
