"""Keeps what a template prints apart from the YAML that its author wrote.

A marked rendering has a placeholder for each printed value: U+E000, the number of the value, and
U+E001. The text is parsed as YAML, and only then do the values take the places of the placeholders
in its scalars, so no value can open a mapping, end a string or begin a comment. Sources with these
characters are refused, so each placeholder in the text stands for a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

OPENING: Final = "\ue000"
CLOSING: Final = "\ue001"

_PLACEHOLDER: Final = re.compile(f"{OPENING}([0-9]{{1,9}}){CLOSING}")
_CONSTANTS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL: Final = re.compile(r"[-+]?[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY: Final = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NOT_A_NUMBER: Final = frozenset({".nan", ".NaN", ".NAN"})
_MOST_DIGITS: Final = 80  # of an integer that may have 64 bits, with zeros in front


class Printed(NamedTuple):
    """A printed value: `is_text` unless it is a number, bool or nil."""

    text: str
    is_text: bool


def placeholder(number: int) -> str:
    """Return the placeholder of the printed value with a number."""
    return f"{OPENING}{number}{CLOSING}"


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendering with placeholders; parse `text` as YAML, then fill each scalar.

    What is printed counts as a number, bool or nil if the last command of its action yields one:
    `{{.n}}`, `{{len .items}}`, `{{eq .a "b"}}`, `{{index .m "n"}}`, and `<no value>`. All else is
    text: strings, the results of print, printf, println, html, js and urlquery (`{{printf "%d" 3}}`
    is the text "3"), lists, maps and complex numbers, which are printed in Go's form.
    """

    text: str
    printed: tuple[Printed, ...]

    def fill(self, scalar_text: str, *, plain: bool) -> object:
        """Return the value of a YAML scalar, with printed values for its placeholders.

        Without placeholders, this is `scalar_text` unchanged, and the caller resolves it. With
        them it is a str, unless the scalar is plain (neither quoted nor a block) and has no printed
        text: then it is resolved by the core schema of YAML 1.2 to None, bool, int, float or str;
        an integer beyond 64 bits becomes a float. Never raises: what looks like a placeholder with
        an unknown number is left as it is.

        Pass `plain=False` for keys: they are strings. Decide what `<<` merges before filling, and
        look for keys that are there twice after it, since a printed key may be equal to another.
        """
        if OPENING not in scalar_text:
            return scalar_text
        is_text = False
        found = False
        pieces: list[str] = []
        done = 0
        for match in _PLACEHOLDER.finditer(scalar_text):
            number = int(match[1])
            if number < len(self.printed):
                value = self.printed[number]
                found = True
                is_text = is_text or value.is_text
                pieces += (scalar_text[done : match.start()], value.text)
                done = match.end()
        if not found:
            return scalar_text
        pieces.append(scalar_text[done:])
        text = "".join(pieces)
        return resolve_plain(text) if plain and not is_text else text


def resolve_plain(text: str) -> bool | int | float | str | None:
    """Return the value of a plain scalar by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "+-.0123456789":
        return text
    number = None
    if len(text) <= _MOST_DIGITS:
        if _DECIMAL.fullmatch(text):
            number = int(text)
        elif _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
            number = int(text, 0)
    if number is not None:
        return number if -(1 << 63) <= number < 1 << 64 else float(number)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY.fullmatch(text):
        return float(f"{match[1]}inf")
    return float("nan") if text in _NOT_A_NUMBER else text
