"""Bound the values of a JSON or MessagePack document without decoding it.

A decoder makes an object of each value: 2 MiB of empty arrays are two million objects, 100 MiB,
and most of a second of the event loop. An honest message is long for its payload, one value.
"""

from __future__ import annotations

import re
from typing import Final

UNCOUNTED_BYTES: Final = 8 * 1024
"""The longest document whose values are not counted: it has no more than MAX_VALUES."""
MAX_VALUES: Final = 8 * 1024
"""Values of a message, keys and nested values included: decoding them takes milliseconds."""

_JSON_TEXT: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""One JSON text, or the rest of one without an end; each character is seen once."""

_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_EXT: Final = frozenset((0xC7, 0xC8, 0xC9))
_FIXED: Final = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""As in wire/framing/nesting.py."""


def json_has_too_many(document: str | bytes) -> bool:
    """Whether a JSON document has more than MAX_VALUES values; keys do not count."""
    if isinstance(document, bytes):
        document = document.decode("latin-1")  # of which UTF-8 changes nothing that is counted
    if _json_values(document) <= MAX_VALUES:
        return False
    # What looks like more may be the inside of texts.
    return _json_values(_JSON_TEXT.sub("", document)) > MAX_VALUES


def _json_values(document: str) -> int:
    return document.count(",") + document.count("[") + document.count("{")


def msgpack_has_too_many(document: bytes) -> bool:
    """Whether a MessagePack document has more than MAX_VALUES values and keys."""
    at, size, due, values = 0, len(document), 1, 0
    while due and at < size:
        values += 1
        if values > MAX_VALUES:
            return True
        due -= 1
        kind = document[at]
        at += 1
        if kind <= 0x7F or kind >= 0xE0:
            continue
        if kind <= 0x8F:
            due += 2 * (kind & 0x0F)
        elif kind <= 0x9F:
            due += kind & 0x0F
        elif kind <= 0xBF:
            at += kind & 0x1F
        elif kind in _FIXED:
            at += _FIXED[kind]
        elif kind in _SIZED:
            width = _SIZED[kind]
            at += width + int.from_bytes(document[at : at + width], "big") + (kind in _EXT)
        elif kind in _CONTAINERS:
            width, each = _CONTAINERS[kind]
            due += each * int.from_bytes(document[at : at + width], "big")
            at += width
    return False
