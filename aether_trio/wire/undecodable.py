"""Tells why a client's protobuf message cannot be decoded, and in which field.

protobuf says only that it cannot. The usual mistake is a text that is no UTF-8 (a lone surrogate,
or bytes in a text field). Only a short message is searched: the search costs a thousand times what
decoding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage

_SEARCHED_BYTES: Final = 64 * 1024
_SEARCHED_FIELDS: Final = 1024
"""Of all the parts of a message together: a millisecond."""
_LENGTH_DELIMITED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of a value, by wire type."""


def undecodable(data: bytes | str, error: DecodeError) -> StatusError:
    """Make the INVALID_ARGUMENT for an UpstreamMessage that cannot be decoded."""
    field = _not_utf8(data, UpstreamMessage.DESCRIPTOR, "", [_SEARCHED_FIELDS]) if isinstance(data, bytes) else None
    reason = f"{field} is not UTF-8" if field else str(error)
    return StatusError(Status.INVALID_ARGUMENT, f"cannot decode UpstreamMessage: {reason}")


def _not_utf8(data: bytes, descriptor: Descriptor, path: str, left: list[int]) -> str | None:
    """Return the path of a text field that is no UTF-8; search `left[0]` fields."""
    if len(data) > _SEARCHED_BYTES:
        return None
    try:
        for number, value in _length_delimited(data, left):
            field: Any = descriptor.fields_by_number.get(number)
            if field is None:
                continue
            here = f"{path}.{field.name}" if path else field.name
            if field.type == FieldDescriptor.TYPE_STRING:
                try:
                    value.decode()
                except UnicodeDecodeError:
                    return here
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                found = _not_utf8(value, field.message_type, here, left)
                if found is not None:
                    return found
    except IndexError:
        pass  # truncated, or too many fields
    return None


def _length_delimited(data: bytes, left: list[int]) -> Iterator[tuple[int, bytes]]:
    """Yield numbers and values of length-delimited fields. Raises IndexError."""
    position = 0
    while position < len(data):
        left[0] -= 1
        if left[0] < 0:
            raise IndexError
        tag, position = read_varint(data, position)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            size, position = read_varint(data, position)
            if position + size > len(data):
                raise IndexError
            yield tag >> 3, data[position : position + size]
            position += size
        elif wire_type == 0:
            _, position = read_varint(data, position)
        elif wire_type in _FIXED:
            position += _FIXED[wire_type]
        else:
            raise IndexError  # no wire type of proto3


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a position, and the position behind it. Raises IndexError."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise IndexError
