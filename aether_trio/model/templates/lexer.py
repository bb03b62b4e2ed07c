"""Cuts a template's source into tokens, as Go's text/template/parse does.

The text between actions is one token. Trim markers and comments are dealt with here, the parser
does not see them. Spaces are tokens, because they separate the words of a command.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from aether_trio.model.text import shown

SPACES: Final = " \t\r\n"
_A_SPACE: Final = frozenset(SPACES)
_LEFT: Final = "{{"
_RIGHT: Final = "}}"
_SPACE_RUN: Final = re.compile(r"[ \t\r\n]+")
_LETTERS: Final = re.compile(r"\w*")
_NUMBER: Final = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*(?:\.[0-7_]*)?|0[bB][01_]*(?:\.[01_]*)?"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_QUOTED: Final = {
    '"': (re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'), "unterminated quoted string"),
    "'": (re.compile(r"'(?:[^'\\\n]|\\[^\n])*'"), "unterminated character constant"),
    "`": (re.compile(r"`[^`]*`"), "unterminated raw quoted string"),
}


class Lexeme(Enum):
    """The kind of a token."""

    ERROR = "an error"
    TEXT = "text"
    LEFT = "{{"
    RIGHT = "}}"
    SPACE = "a space"
    PIPE = "|"
    OPEN = "("
    CLOSE = ")"
    DECLARE = ":="
    ASSIGN = "="
    MARK = "a character"
    DOT = "."
    FIELD = "a field"
    VARIABLE = "a variable"
    NAME = "a name"
    KEYWORD = "a keyword"
    NIL = "nil"
    BOOL = "a bool"
    NUMBER = "a number"
    COMPLEX = "a complex number"
    CHARACTER = "a character constant"
    STRING = "a string"
    END = "the end of the template"


KEYWORDS: Final = frozenset(
    {"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"},
)

_QUOTED_KINDS: Final = {'"': Lexeme.STRING, "'": Lexeme.CHARACTER, "`": Lexeme.STRING}
_MARKS: Final = {"|": Lexeme.PIPE, "=": Lexeme.ASSIGN}


class TemplateToken(NamedTuple):
    """A token; an ERROR's text says what is wrong, and no token comes after it."""

    kind: Lexeme
    text: str
    offset: int


class _Malformed(Exception):
    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


def tokenize(source: str) -> list[TemplateToken]:
    """Return the tokens of a source; the last is END, or ERROR if it is malformed."""
    tokens: list[TemplateToken] = []
    try:
        _scan(source, tokens)
    except _Malformed as error:
        tokens.append(TemplateToken(Lexeme.ERROR, error.message, error.offset))
    return tokens


def _scan(source: str, tokens: list[TemplateToken]) -> None:
    place = 0
    while True:
        left = source.find(_LEFT, place)
        if left < 0:
            if place < len(source):
                tokens.append(TemplateToken(Lexeme.TEXT, source[place:], place))
            tokens.append(TemplateToken(Lexeme.END, "", len(source)))
            return
        inside = left + len(_LEFT)
        trims = source.startswith("-", inside) and source[inside + 1 : inside + 2] in _A_SPACE
        text = source[place:left]
        if trims:
            text = text.rstrip(SPACES)
            inside += 2
        if text:
            tokens.append(TemplateToken(Lexeme.TEXT, text, place))
        if source.startswith("/*", inside):
            place = _skip_comment(source, inside)
        else:
            tokens.append(TemplateToken(Lexeme.LEFT, _LEFT, left))
            place = _scan_action(source, inside, tokens, left)


def _right_delimiter(source: str, place: int) -> tuple[int, bool] | None:
    """Return the end of the right delimiter at `place`, and whether it trims."""
    if source.startswith(_RIGHT, place):
        return place + len(_RIGHT), False
    if source[place : place + 1] in _A_SPACE and source.startswith("-}}", place + 1):
        return place + 2 + len(_RIGHT), True
    return None


def _after(source: str, end: int, trims: bool) -> int:
    """Return where the text after a right delimiter begins."""
    if trims and (run := _SPACE_RUN.match(source, end)):
        return run.end()
    return end


def _skip_comment(source: str, place: int) -> int:
    end = source.find("*/", place + 2)
    if end < 0:
        raise _Malformed("unclosed comment", place)
    right = _right_delimiter(source, end + 2)
    if right is None:
        raise _Malformed("comment ends before closing delimiter", place)
    return _after(source, *right)


def _scan_action(source: str, place: int, tokens: list[TemplateToken], left: int) -> int:
    """Append the tokens of an action; return where the text after it begins."""
    depth = 0
    while True:
        right = _right_delimiter(source, place)
        if right is not None:
            if depth:
                raise _Malformed("unclosed left paren", left)
            tokens.append(TemplateToken(Lexeme.RIGHT, _RIGHT, place))
            return _after(source, *right)
        if place >= len(source):
            raise _Malformed("unclosed action", left)
        token = _scan_token(source, place)
        if token.kind is Lexeme.OPEN:
            depth += 1
        elif token.kind is Lexeme.CLOSE:
            depth -= 1
            if depth < 0:
                raise _Malformed("unexpected right paren", place)
        tokens.append(token)
        place += len(token.text)


def _scan_token(source: str, place: int) -> TemplateToken:
    first = source[place]
    if first in SPACES:
        run = _SPACE_RUN.match(source, place)
        assert run is not None
        end = run.end()
        if source.startswith("-}}", end) and end - 1 > place:
            end -= 1  # the last space belongs to the trim marker
        return TemplateToken(Lexeme.SPACE, source[place:end], place)
    if first in _MARKS:
        return TemplateToken(_MARKS[first], first, place)
    if first == ":":
        if not source.startswith(":=", place):
            raise _Malformed("expected :=", place)
        return TemplateToken(Lexeme.DECLARE, ":=", place)
    if first in _QUOTED:
        pattern, problem = _QUOTED[first]
        match = pattern.match(source, place)
        if match is None:
            raise _Malformed(problem, place)
        return TemplateToken(_QUOTED_KINDS[first], match[0], place)
    if first == "$":
        return _scan_name(source, place, Lexeme.VARIABLE)
    if first == "." and not ("0" <= source[place + 1 : place + 2] <= "9"):
        return _scan_name(source, place, Lexeme.FIELD)
    if first in "+-." or "0" <= first <= "9":
        return _scan_number(source, place)
    if _is_letter(first):
        return _scan_word(source, place)
    if first == "(":
        return TemplateToken(Lexeme.OPEN, first, place)
    if first == ")":
        return TemplateToken(Lexeme.CLOSE, first, place)
    if first.isascii() and first.isprintable():
        return TemplateToken(Lexeme.MARK, first, place)
    raise _Malformed(f"unrecognized character in action: U+{ord(first):04X}", place)


def _is_letter(mark: str) -> bool:
    return mark == "_" or mark.isalpha() or mark.isdecimal()


def _end_of_letters(source: str, place: int) -> int:
    """Return the end of the run of letters, digits and underscores at `place`."""
    match = _LETTERS.match(source, place)
    assert match is not None
    end = match.end()
    if not match[0].isascii():  # \\w has more than Go's letters and digits
        for index in range(place, end):
            if not _is_letter(source[index]):
                return index
    return end


def _check_end_of_word(source: str, place: int) -> None:
    if place < len(source) and source[place] not in " \t\r\n.,|:()" and not source.startswith(_RIGHT, place):
        raise _Malformed(f"bad character {source[place]!a} after a name", place)


def _scan_name(source: str, place: int, kind: Lexeme) -> TemplateToken:
    """Scan a field or variable, of which the first character has been seen."""
    end = _end_of_letters(source, place + 1)
    _check_end_of_word(source, end)
    text = source[place:end]
    return TemplateToken(Lexeme.DOT if text == "." else kind, text, place)


def _scan_word(source: str, place: int) -> TemplateToken:
    end = _end_of_letters(source, place)
    _check_end_of_word(source, end)
    word = source[place:end]
    if word in KEYWORDS:
        return TemplateToken(Lexeme.KEYWORD, word, place)
    if word in {"true", "false"}:
        return TemplateToken(Lexeme.BOOL, word, place)
    return TemplateToken(Lexeme.NIL if word == "nil" else Lexeme.NAME, word, place)


def _scan_number(source: str, place: int) -> TemplateToken:
    kind = Lexeme.NUMBER
    end = _end_of_number(source, place)
    if source[end : end + 1] in {"+", "-"}:
        kind = Lexeme.COMPLEX
        end = _end_of_number(source, end)
        if source[end - 1] != "i":
            raise _Malformed(f"bad number syntax: {shown(source[place:end])}", place)
    return TemplateToken(kind, source[place:end], place)


def _end_of_number(source: str, place: int) -> int:
    match = _NUMBER.match(source, place)
    assert match is not None  # it may be empty
    end = match.end()
    if end < len(source) and _is_letter(source[end]):
        raise _Malformed(f"bad number syntax: {shown(source[place : end + 1])}", place)
    return end
