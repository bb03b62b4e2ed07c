"""Find how deeply a MessagePack value is nested, without decoding it.

What a decoder does with a value that is nested thousands deep depends on the interpreter's stack,
which is no rule for a protocol. So no recursion is used. A value that is cut short or of an
unknown type ends the walk, because the decoder will say so better.
"""

from __future__ import annotations

from typing import Final

_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
"""bin, str and ext: bytes of the length behind the type byte (an ext's type byte follows)."""
_EXT: Final = frozenset((0xC7, 0xC8, 0xC9))
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""nil, booleans, numbers and fixext: bytes that follow the type byte."""
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""array and map: bytes of the count, and values for each entry."""


def nesting(data: bytes, limit: int) -> int:
    """Return the deepest nesting of containers in MessagePack, up to `limit` + 1."""
    due = [1]
    deepest = at = 0
    while due and at < len(data):
        kind = data[at]
        at += 1
        due[-1] -= 1
        if kind <= 0x7F or kind >= 0xE0:
            children = 0
        elif kind <= 0x8F:
            children = 2 * (kind & 0x0F)
        elif kind <= 0x9F:
            children = kind & 0x0F
        elif kind <= 0xBF:
            at += kind & 0x1F
            children = 0
        elif kind in _FIXED:
            at += _FIXED[kind]
            children = 0
        elif kind in _SIZED:
            size = _SIZED[kind]
            at += size + int.from_bytes(data[at : at + size]) + (kind in _EXT)
            children = 0
        elif kind in _CONTAINERS:
            size, each = _CONTAINERS[kind]
            children = each * int.from_bytes(data[at : at + size])
            at += size
        else:
            return deepest
        if children:
            due.append(children)
            deepest = max(deepest, len(due) - 1)
            if deepest > limit:
                return deepest
        while due and not due[-1]:
            due.pop()
    return deepest
