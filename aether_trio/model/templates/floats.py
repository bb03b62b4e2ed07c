"""Floats as Go's strconv.FormatFloat spells them."""

from __future__ import annotations

import math
from typing import Final

_MANTISSA_BITS: Final = 52
_FIRST_LARGE_EXPONENT: Final = 6  # from here, %g of the shortest form is %e


def format_float(value: float, verb: str, precision: int) -> str:
    """Return a float64 in the form of a verb (b, e, E, f, g, G, x or X).

    A negative precision stands for the fewest digits that give the same float64 back.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if verb == "b":
        return _binary(value)
    if verb in "xX":
        return _hexadecimal(value, verb, precision)
    if precision >= 0:
        return format(value, f".{precision}{verb}")
    return _shortest(value, verb)


def shortest_float(value: float) -> str:
    """Return a float64 as %v prints it."""
    if value and -1e6 < value < 1e6 and value.is_integer():
        return str(int(value))
    return format_float(value, "g", -1)


def _shortest(value: float, verb: str) -> str:
    sign = "-" if math.copysign(1, value) < 0 else ""
    digits, exponent = _digits(abs(value))
    if verb in "gG":
        if -4 <= exponent < _FIRST_LARGE_EXPONENT:
            verb = "f"
        else:
            verb = "e" if verb == "g" else "E"
    if verb == "f":
        return sign + _fixed(digits, exponent)
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}{verb}{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _fixed(digits: str, exponent: int) -> str:
    if exponent < 0:
        return f"0.{'0' * (-exponent - 1)}{digits}"
    if len(digits) <= exponent + 1:
        return digits + "0" * (exponent + 1 - len(digits))
    return f"{digits[: exponent + 1]}.{digits[exponent + 1 :]}"


def _digits(value: float) -> tuple[str, int]:
    """Return the fewest digits of a float from 0, and its decimal exponent."""
    if not value:
        return "0", 0
    mantissa, _, power = repr(value).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = int(power or 0) + (len(whole) - 1 if whole != "0" else len(digits) - len(fraction) - 1)
    return digits.rstrip("0") or "0", exponent


def _parts(value: float) -> tuple[bool, int, int]:
    """Return the sign, the mantissa of 53 bits and the exponent of its last bit."""
    fraction, exponent = math.frexp(abs(value))
    mantissa = int(math.ldexp(fraction, _MANTISSA_BITS + 1))
    exponent -= _MANTISSA_BITS + 1
    lowest = -1074
    if not mantissa:
        exponent = lowest
    elif exponent < lowest:
        mantissa >>= lowest - exponent
        exponent = lowest
    return math.copysign(1, value) < 0, mantissa, exponent


def _binary(value: float) -> str:
    negative, mantissa, exponent = _parts(value)
    return f"{'-' if negative else ''}{mantissa}p{exponent:+d}"


def _hexadecimal(value: float, verb: str, precision: int) -> str:
    negative, mantissa, exponent = _parts(value)
    if mantissa:
        shift = 61 - mantissa.bit_length()  # the leading 1 becomes bit 60
        mantissa <<= shift
        exponent += 60 - shift
    else:
        exponent = 0
    if 0 <= precision < 15:
        bits = 60 - precision * 4
        kept, rest = mantissa >> bits, mantissa & ((1 << bits) - 1)
        half = 1 << (bits - 1)
        if rest > half or (rest == half and kept & 1):
            kept += 1
        mantissa = kept << bits
        if mantissa >> 61:
            mantissa >>= 1
            exponent += 1
    digits = f"{mantissa & ((1 << 60) - 1):015x}"
    digits = digits.rstrip("0") if precision < 0 else digits[:precision].ljust(precision, "0")
    text = f"0x{mantissa >> 60}{'.' if digits else ''}{digits}p{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    return ("-" if negative else "") + (text.upper() if verb == "X" else text)
