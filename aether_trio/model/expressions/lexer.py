"""Splits the source of an expression into tokens, as expr-lang 1.17 does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aether_trio.model.expressions.errors import Fault

NUMBER: Final = "number"
STRING: Final = "string"
IDENTIFIER: Final = "identifier"
OPERATOR: Final = "operator"
BRACKET: Final = "bracket"
END: Final = "end"

SPACES: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""What Go takes as white space."""
_WORDS: Final = frozenset(
    {"not", "in", "or", "and", "matches", "contains", "startsWith", "endsWith", "let", "if", "else"}
)
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_HEX_LENGTHS: Final = {"x": 2, "u": 4, "U": 8}
_NUMBER: Final = re.compile(
    r"(?:0[xX][0-9a-fA-F_]*|0[oO][0-7_]*|0[bB][01_]*|[0-9_]*)"  # a whole part
    r"(?:\.(?!\.)[0-9_]*)?(?:[eE][+-]?[0-9_]*)?"
)
_BRACED: Final = re.compile(r"\{([0-9a-fA-F]{1,6})\}")
_MOST_CHARACTER: Final = 0x10FFFF
_OCTAL: Final = frozenset("01234567")
_HEX: Final = frozenset("0123456789abcdefABCDEF")


@dataclass(slots=True, frozen=True)
class ExpressionToken:
    """A word of the source, with its place."""

    kind: str
    text: str
    offset: int

    def is_(self, kind: str, *texts: str) -> bool:
        """Return whether this is of a kind, and one of some texts if there are any."""
        return self.kind == kind and (not texts or self.text in texts)

    def __str__(self) -> str:
        return "the end" if self.kind == END else repr(self.text)


def is_alphabetic(character: str) -> bool:
    """Return whether an identifier may begin with a character."""
    return character in "_$" or character.isalpha()


def is_alphanumeric(character: str) -> bool:
    """Return whether an identifier may have a character."""
    return character in "_$" or character.isalpha() or character.isdecimal()


def is_identifier(text: str) -> bool:
    """Return whether a text is an identifier."""
    return bool(text) and is_alphabetic(text[0]) and all(map(is_alphanumeric, text))


def tokens_of(source: str) -> Iterator[ExpressionToken]:
    """Yield the tokens of a source, with one for its end; fault at what is none."""
    return _Lexer(source).tokens()


class _Lexer:
    """Reads one source from left to right."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.size = len(source)

    def tokens(self) -> Iterator[ExpressionToken]:
        source, size = self.source, self.size
        at = 0
        while at < size:
            start = at
            character = source[at]
            at += 1
            following = source[at] if at < size else ""
            kind = OPERATOR
            if character in SPACES:
                continue
            if character in "'\"":
                text, at = self.quoted(at, character)
                yield ExpressionToken(STRING, text, start)
                continue
            if character == "`":
                text, at = self.raw(at)
                yield ExpressionToken(STRING, text, start)
                continue
            if character in "0123456789" or (character == "." and following in tuple("0123456789")):
                at = self.number(start)
                kind = NUMBER
            elif character == "/" and following == "/":
                end = source.find("\n", at)
                at = size if end < 0 else end + 1
                continue
            elif character == "/" and following == "*":
                end = source.find("*/", at + 1)
                if end < 0:
                    raise Fault("a comment has no end", start)
                at = end + 2
                continue
            elif character == "#":
                at += following == "#"
                yield ExpressionToken(OPERATOR, source[start:at], start)
                start, at = at, self.word(at)
                if at == start:
                    continue
                kind = IDENTIFIER
            elif character in "([{)]}":
                kind = BRACKET
            elif character in "|:.":
                at += following == character
            elif character == "?":
                at += following in (".", "?")
            elif character in "&!=*<>":
                at += following in ("&", "=", "*")
            elif is_alphanumeric(character):
                at = self.word(at)
                kind = OPERATOR if source[start:at] in _WORDS else IDENTIFIER
            elif character not in ",;%+-^/":
                raise Fault(f"the character {character!a} has no meaning here", start)
            yield ExpressionToken(kind, source[start:at], start)
        yield ExpressionToken(END, "", max(size - 1, 0))

    def word(self, at: int) -> int:
        while at < self.size and is_alphanumeric(self.source[at]):
            at += 1
        return at

    def number(self, start: int) -> int:
        match = _NUMBER.match(self.source, start)
        end = match.end() if match else start
        if end < self.size and is_alphanumeric(self.source[end]):
            raise Fault(f"{self.source[start : end + 1]!r} is no number", start)
        return end

    def raw(self, at: int) -> tuple[str, int]:
        """Read a string in backquotes; two of them stand for one."""
        start = at
        while True:
            at = self.source.find("`", at)
            if at < 0:
                raise Fault("a string has no end", start - 1)
            if not self.source.startswith("`", at + 1):
                return self.source[start:at].replace("``", "`"), at + 1
            at += 2

    def quoted(self, at: int, quote: str) -> tuple[str, int]:
        """Read a string with escapes; ends of lines within it become a newline."""
        source = self.source
        start = at
        parts: list[str] = []
        while at < self.size:
            character = source[at]
            at += 1
            if character == quote:
                return "".join(parts), at
            if character == "\n":
                break
            if character == "\\":
                character, at = self.escape(at, quote)
            elif character == "\r":
                character = "\n"
            parts.append(character)
        raise Fault("a string has no end on its line", start - 1)

    def escape(self, at: int, quote: str) -> tuple[str, int]:
        source = self.source
        kind = source[at] if at < self.size else ""
        if kind == quote:
            return quote, at + 1
        if kind in _ESCAPES:
            return _ESCAPES[kind], at + 1
        if kind == "u" and (braced := _BRACED.match(source, at + 1)):
            return _character(braced[1], 16, at), braced.end()
        if kind in tuple("0123"):
            return _character(source[at : at + 3], 8, at, 3), at + 3
        length = _HEX_LENGTHS.get(kind)
        if length is None:
            raise Fault("an escape in a string is none that expressions know", at - 1)
        return _character(source[at + 1 : at + 1 + length], 16, at, length), at + 1 + length


def _character(digits: str, base: int, at: int, length: int = 0) -> str:
    """Return the character with a number; lone surrogates become U+FFFD, as in Go."""
    if len(digits) < length or not (_OCTAL if base == 8 else _HEX).issuperset(digits):
        raise Fault("an escape in a string lacks digits", at - 1)
    value = int(digits, base)
    if value > _MOST_CHARACTER:
        raise Fault("an escape in a string is no character of Unicode", at - 1)
    return "\ufffd" if 0xD800 <= value < 0xE000 else chr(value)
