"""Constants in a template's source, read as Go's strconv reads them."""

from __future__ import annotations

import math
import re
from typing import Final

from aether_trio.model.templates.values import from_bytes, to_bytes
from aether_trio.model.text import shown

_ESCAPE: Final = re.compile(
    r"\\(?:(?P<simple>[abfnrtv\\\"'])|x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-7]{3})"
    r"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8}))"
)
_SIMPLE: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}

_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEXADECIMAL: Final = re.compile(
    r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+",
)
_INTEGER: Final = re.compile(r"([+-]?)(?:0[bB]([01_]+)|0[oO]([0-7_]+)|0[xX]([0-9a-fA-F_]+)|0([0-7_]*)|([1-9][0-9_]*))")
_COMPLEX: Final = re.compile(
    r"([+-]?(?:0[xX][0-9a-fA-F_.]*(?:[pP][+-]?[0-9_]*)?|[0-9_.]*(?:[eE][+-]?[0-9_]*)?))([+-].*)i",
)

_MOST_DIGITS: Final = 100  # of an integer, in any base; 64 bits have fewer
_BITS: Final = 64


class LiteralError(ValueError):
    """A constant is malformed; the parser adds the position."""


class OverflowingInteger:
    """A constant between 2**63 and 2**64: it may be written, and fails when used."""

    __slots__ = ()


Number = int | float | complex | OverflowingInteger


def unquote(quoted: str) -> str:
    """Return the text of a constant in double quotes or backquotes."""
    body = quoted[1:-1]
    if quoted[0] == "`":
        return body.replace("\r", "")
    if "\\" not in body:
        return body
    parts: list[bytes] = []
    done = 0
    while (place := body.find("\\", done)) >= 0:
        parts.append(to_bytes(body[done:place]))
        code, is_byte, done = _escape(body, place, '"')
        parts.append(bytes([code]) if is_byte else chr(code).encode())
    parts.append(to_bytes(body[done:]))
    return from_bytes(b"".join(parts))


def unquote_character(quoted: str) -> int:
    """Return the code point of a constant in single quotes."""
    body = quoted[1:-1]
    if body.startswith("\\"):
        code, _, end = _escape(body, 0, "'")
        if end == len(body):
            return code
    elif len(body) == 1:
        return ord(body)
    raise LiteralError(f"malformed character constant: {shown(quoted)}")


def _escape(body: str, place: int, quote: str) -> tuple[int, bool, int]:
    """Return the code of the escape at `place`, whether it is a byte, and its end."""
    match = _ESCAPE.match(body, place)
    if match is None:
        raise LiteralError(f"invalid escape {shown(body[place : place + 2])} in a constant")
    if simple := match["simple"]:
        if simple in "\"'" and simple != quote:
            raise LiteralError(f"invalid escape \\{simple} in a constant")
        return _SIMPLE[simple], False, match.end()
    if octal := match["octal"]:
        code = int(octal, 8)
        if code > 0xFF:
            raise LiteralError(f"\\{octal} in a constant is more than one byte")
        return code, True, match.end()
    if byte := match["byte"]:
        return int(byte, 16), True, match.end()
    code = int(match["short"] or match["long"], 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise LiteralError(f"{match[0]} in a constant is not a character")
    return code, False, match.end()


def parse_number(text: str) -> Number:
    """Return the value of a numeric constant; its spelling decides its type, as in Go."""
    if text.endswith("i"):
        imaginary = parse_float(text[:-1])
        if imaginary is not None:
            return complex(0, imaginary)
    integer = _parse_integer(text)
    floating = float(integer) if integer is not None else parse_float(text)
    if floating is None:
        raise LiteralError(f"illegal number syntax: {shown(text)}")
    has_point = any(mark in text for mark in ".eEpP")
    if integer is None and not has_point:
        raise LiteralError(f"integer overflow: {shown(text)}")
    is_hexadecimal = len(text) > 2 and text[0] == "0" and text[1] in "xX" and "p" not in text and "P" not in text
    if has_point and not is_hexadecimal:
        return floating
    assert integer is not None  # what is left was read as one
    return integer if integer < 1 << (_BITS - 1) else OverflowingInteger()


def parse_complex(text: str) -> complex:
    """Return the value of a constant like `1+2i`."""
    match = _COMPLEX.fullmatch(text)
    if match is not None:
        real, imaginary = parse_float(match[1]), parse_float(match[2])
        if real is not None and imaginary is not None:
            return complex(real, imaginary)
    raise LiteralError(f"illegal number syntax: {shown(text)}")


def parse_float(text: str) -> float | None:
    """Return the value of a decimal or hexadecimal float, None if it has none."""
    if "_" in text:
        if not _underscores_are_right(text):
            return None
        text = text.replace("_", "")
    try:
        if _DECIMAL.fullmatch(text):
            value = float(text)
        elif _HEXADECIMAL.fullmatch(text):
            value = float.fromhex(text)
        else:
            return None
    except (OverflowError, ValueError):
        return None
    return None if math.isinf(value) else value


def _parse_integer(text: str) -> int | None:
    """Return an integer of 64 bits, signed or not; None for anything else."""
    match = _INTEGER.fullmatch(text)
    if match is None or ("_" in text and not _underscores_are_right(text)):
        return None
    sign, binary, octal, hexadecimal, old_octal, decimal = match.groups()
    for digits, base in ((binary, 2), (octal, 8), (hexadecimal, 16), (old_octal, 8), (decimal, 10)):
        if digits is not None:
            significant = digits.replace("_", "").lstrip("0") or "0"
            if len(significant) > _MOST_DIGITS:
                return None
            value = int(significant, base)
            if sign == "-":
                return -value if value <= 1 << (_BITS - 1) else None
            if sign == "+":
                return value if value < 1 << (_BITS - 1) else None
            return value if value < 1 << _BITS else None
    raise AssertionError("one of the alternatives has matched")


def _underscores_are_right(text: str) -> bool:
    """Return whether each underscore separates digits, or a prefix from digits."""
    saw = "^"
    place = 1 if text[:1] in {"+", "-"} else 0
    digits = "0123456789"
    if text[place : place + 2].lower() in {"0b", "0o", "0x"}:
        if text[place + 1] in "xX":
            digits = "0123456789abcdefABCDEF"
        place += 2
        saw = "0"
    for mark in text[place:]:
        if mark in digits:
            saw = "0"
        elif mark == "_":
            if saw != "0":
                return False
            saw = "_"
        else:
            if saw == "_":
                return False
            saw = "!"
    return saw != "_"
