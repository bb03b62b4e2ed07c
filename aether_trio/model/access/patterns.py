r"""Patterns of access rules: Go's `path.Match`, in linear time, with containment.

| written | matches |
|---|---|
| `*` | any characters but "/", or none |
| `?` | one character but "/" |
| `[a-z_]`, `[^a-z_]` | one character of these, or one of all others ("/" is like any other here) |
| `\c` | the character c |
| other | itself |

A pattern matches whole texts. A text without unescaped `*`, `?` and `[` is no pattern but a name:
`Pattern.literal` is that name.

Go's function differs from its documentation in two corners, and this module follows the
documentation, which alone can be compared by `contains`. Where a class between two stars may match
"/" (`*[^b]*c` on `a/c`), Go tries the first place only and says no. And Go's star may end within a
character of several bytes, so that `*[^a][^a]` matches a single "☺".

Invariants: matching takes time in proportion to the text, times the length of the pattern at most,
since no star is tried twice. `contains` never says yes for a wider pattern.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aether_trio.model.text import shown

MAX_WILDCARDS: Final = 16
MAX_PATTERN_BYTES: Final = 1024  # of UTF-8
MAX_STEPS: Final = 20_000
"""Steps of one comparison by `contains`, some 20 ms; what needs more is taken as wider."""
MAX_COMPARED: Final = 100_000
"""Steps of the comparisons that one question takes together, some 100 ms."""

_LAST_CODE: Final = 0x10FFFF
_SLASH: Final = ord("/")
_METACHARACTER: Final = re.compile(r"[*?\[\\]")


class PatternError(ValueError):
    """A pattern is malformed or too large; has the position and the reason."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(f"bad pattern {shown(text)}, character {position + 1}: {reason}")
        self.position = position  # counts from 0
        self.reason = reason


class TooManySteps(Exception):
    """Patterns cannot be compared within the steps that they may take."""


class Steps:
    """How many steps comparisons may take together; each takes MAX_STEPS at most."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_STEPS) -> None:
        self.left = left

    def take(self, count: int = 1) -> None:
        """Take some steps. Raises TooManySteps if there are no more."""
        if self.left < count:
            self.left = 0
            raise TooManySteps
        self.left -= count


def escape(text: str) -> str:
    r"""Return the pattern that matches this text alone: `wh\?t` for "wh?t"."""
    return _METACHARACTER.sub(r"\\\g<0>", text)


def literal_of(text: str) -> str | None:
    """Return the name that a pattern's text stands for; None if it has a wildcard."""
    return compile_pattern(text).literal if _METACHARACTER.search(text) is not None else text


def respelt(text: str) -> str:
    """Return a pattern's text with a name escaped in one way; raises PatternError."""
    name = literal_of(text)
    return text if name is None or name is text else escape(name)


class _CharacterSet(NamedTuple):
    """One character of these ranges of codes, or one of all others."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def has(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) is not self.negated

    @property
    def example(self) -> str | None:
        """A character of the set, a readable one if there is one; None if it is empty."""
        codes = (*map(ord, "xyz019"), *(code for one in self.ranges for code in (one[0], one[1] + 1)))
        return next((chr(code) for code in codes if code <= _LAST_CODE and self.has(code)), None)

    def in_order(self) -> _CharacterSet:
        """Return the same set with ranges that are in order, and apart."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(self.ranges):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(high, merged[-1][1])
            else:
                merged.append((low, high))
        return _CharacterSet(tuple(merged), self.negated)

    def has_in_order(self, code: int) -> bool:
        """Return what `has` does, for a set from `in_order`."""
        at = bisect_right(self.ranges, (code, _LAST_CODE)) - 1
        return (at >= 0 and code <= self.ranges[at][1]) is not self.negated

    def is_exactly(self, code: int) -> bool:
        return not self.negated and all(one == (code, code) for one in self.ranges) and bool(self.ranges)

    @property
    def source(self) -> str:
        """The set as a regular expression."""
        if not self.ranges:
            return "." if self.negated else "(?!)"
        inner = "".join(rf"\U{low:08x}-\U{high:08x}" for low, high in self.ranges)
        return f"[{'^' if self.negated else ''}{inner}]"


_NOT_SLASH: Final = _CharacterSet(((_SLASH, _SLASH),), negated=True)
_ANY_CHARACTER: Final = _CharacterSet((), negated=True)


class _Star:
    """Any characters, or none."""


_STAR: Final = _Star()
_Token = str | _CharacterSet | _Star


def _parse(text: str, crosses_slash: bool) -> list[_Token]:
    """Return the tokens of a pattern: texts, sets and stars. Raises PatternError."""
    if (zero := text.find("\0")) >= 0:
        raise PatternError(text, zero, "the zero byte is not allowed")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise PatternError(text, error.start, "a lone surrogate cannot be written as UTF-8") from None
    if size > MAX_PATTERN_BYTES:
        raise PatternError(text, 0, f"it has {size} bytes; at most {MAX_PATTERN_BYTES} are allowed")
    tokens: list[_Token] = []
    wildcards = at = 0
    while (special := _METACHARACTER.search(text, at)) is not None:
        start = special.start()
        if at < start:
            tokens.append(text[at:start])
        one = text[start]
        at = start + 1
        if one == "\\":
            if at == len(text):
                raise PatternError(text, start, r"a backslash at the end escapes nothing; write \\ for the character")
            tokens.append(text[at])
            at += 1
            continue
        wildcards += 1
        if wildcards > MAX_WILDCARDS:
            raise PatternError(text, start, f"this is wildcard {wildcards}; at most {MAX_WILDCARDS} are allowed")
        if one == "*":
            tokens.append(_STAR)
        elif one == "?":
            tokens.append(_ANY_CHARACTER if crosses_slash else _NOT_SLASH)
        else:
            token, at = _parse_class(text, at)
            tokens.append(token)
    if at < len(text):
        tokens.append(text[at:])
    return tokens


def _parse_class(text: str, at: int) -> tuple[_CharacterSet, int]:
    """Parse a class from behind its `[`; return it and the position behind its `]`."""
    start = at - 1

    def character(at: int) -> tuple[int, int]:
        if text.startswith("\\", at):
            at += 1
        elif text.startswith(("-", "]"), at):
            raise PatternError(text, at, rf"a class needs a character here; write \{text[at]} for this one")
        if at + 1 >= len(text):
            raise PatternError(text, start, "this class has no end; write \\[ for the character")
        return ord(text[at]), at + 1

    negated = text.startswith("^", at)
    at += negated
    ranges: list[tuple[int, int]] = []
    while not (ranges and text[at] == "]"):
        low, at = character(at)
        high = low
        if text[at] == "-":
            high, at = character(at + 1)
        ranges.append((low, high))
    return _CharacterSet(tuple(one for one in ranges if one[0] <= one[1]), negated), at + 1


class Pattern:
    """A compiled pattern or name; `compile_pattern` makes one. Immutable."""

    __slots__ = ("_matcher", "_pieces", "crosses_slash", "literal", "prefix", "suffix", "text")

    def __init__(self, text: str, tokens: Sequence[_Token], crosses_slash: bool) -> None:
        self.text: Final = text
        self.crosses_slash: Final = crosses_slash
        chunks = _chunks(tokens)
        first = next((at for at, one in enumerate(tokens) if not isinstance(one, str)), len(tokens))
        plain = "".join(one for one in tokens[:first] if isinstance(one, str))
        self.literal: Final = None if first < len(tokens) else text if plain == text else plain
        """The unescaped text, if there is no wildcard; else None."""
        self.prefix: Final = plain
        """The unescaped text before the first wildcard."""
        last = next((at for at in range(len(tokens), 0, -1) if not isinstance(tokens[at - 1], str)), 0)
        self.suffix: Final = "".join(one for one in tokens[last:] if isinstance(one, str)) if last else ""
        """The unescaped text behind the last wildcard; "" if there is none."""
        self._pieces: tuple[str, ...] | None = None
        self._matcher: Callable[[str], object] | None = None
        if self.literal is not None:
            return
        texts = ["".join(one) if all(isinstance(c, str) for c in one) else None for one in chunks]  # type: ignore[arg-type]
        if len(chunks) > 1 and None not in texts:
            self._pieces = tuple(filter(None, texts[1:-1]))
        elif not crosses_slash and any(map(_is_ambiguous, chunks[1:-1])):
            self._matcher = _Automaton(tokens, crosses_slash).matches
        else:
            self._matcher = re.compile(_source(chunks, crosses_slash), re.DOTALL).fullmatch

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches this whole text."""
        pieces = self._pieces
        if pieces is None:
            return text == self.literal if self._matcher is None else bool(self._matcher(text))
        at = len(self.prefix)
        end = len(text) - len(self.suffix)
        if at > end or not text.endswith(self.suffix) or not text.startswith(self.prefix):
            return False
        for piece in pieces:
            found = text.find(piece, at, end)
            if found < 0 or (not self.crosses_slash and text.find("/", at, found) >= 0):
                return False
            at = found + len(piece)
        return self.crosses_slash or text.find("/", at, end) < 0

    @property
    def example(self) -> str | None:
        """A text that the pattern matches, with an "x" for each star; None: none."""
        found: list[str] = []
        for one in _parse(self.text, self.crosses_slash):
            text = one if isinstance(one, str) else "x" if isinstance(one, _Star) else one.example
            if text is None:
                return None
            found.append(text)
        return "".join(found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        return self.text == other.text and self.crosses_slash == other.crosses_slash

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def compile_pattern(text: str, *, crosses_slash: bool = False) -> Pattern:
    """Compile a pattern; raise PatternError if it is malformed or too large.

    With `crosses_slash`, stars and question marks match "/" too: for locks, which must not miss an
    identity because of a character in its name.
    """
    return Pattern(text, _parse(text, crosses_slash), crosses_slash)


def _chunks(tokens: Sequence[_Token]) -> list[list[str | _CharacterSet]]:
    """Return the tokens between the stars: one list more than there are stars."""
    chunks: list[list[str | _CharacterSet]] = [[]]
    for one in tokens:
        if isinstance(one, _Star):
            chunks.append([])
        else:
            chunks[-1].append(one)
    return chunks


def _is_ambiguous(chunk: Sequence[str | _CharacterSet]) -> bool:
    """Return whether a chunk between stars may match at several places around a "/".

    A chunk without "/" is best matched at its first place: the next star takes the rest. A chunk
    with a certain "/" has one place, at the first "/" of the text. Between them are chunks whose
    sets may match "/" or something else: their first place is not always the right one.
    """
    for one in chunk:
        if (isinstance(one, str) and "/" in one) or (isinstance(one, _CharacterSet) and one.is_exactly(_SLASH)):
            return False
        if isinstance(one, _CharacterSet) and one.has(_SLASH):
            return True
    return False


def _source(chunks: Sequence[Sequence[str | _CharacterSet]], crosses_slash: bool) -> str:
    """Return the regular expression: each star takes as little as it can, once.

    An atomic group is never entered again, so no combination of stars is tried. The last star alone
    looks for its place, since the text behind it has to end with the text.
    """
    star = "." if crosses_slash else "[^/]"
    first, *rest = ["".join(re.escape(c) if isinstance(c, str) else c.source for c in chunk) for chunk in chunks]
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>{star}*?{piece})" for piece in middle if piece) + f"{star}*{last}"


class _Automaton:
    """A pattern as a nondeterministic automaton; a bit of a number is a state.

    State n is before token n. A star's state leads to the next one without a character.
    """

    __slots__ = ("_classes", "_literals", "_sets", "_stars", "_stays_at_slash", "accepting", "initial")

    def __init__(self, tokens: Sequence[_Token], crosses_slash: bool) -> None:
        self._sets: list[_CharacterSet | None] = []
        for one in tokens:
            if isinstance(one, str):
                self._sets += [_CharacterSet(((ord(c), ord(c)),)) for c in one]
            elif isinstance(one, _CharacterSet):
                self._sets.append(one)
            elif not self._sets or self._sets[-1] is not None:  # two stars are one
                self._sets.append(None)
        self._literals: dict[int, int] = {}
        """By code: the states before this character."""
        self._classes: list[tuple[int, _CharacterSet]] = []
        """States, each with the set before which it is, whose ranges are in order."""
        for at, found in enumerate(self._sets):
            if found is None:
                continue
            if not found.negated and len(found.ranges) == 1 and found.ranges[0][0] == found.ranges[0][1]:
                code = found.ranges[0][0]
                self._literals[code] = self._literals.get(code, 0) | 1 << at
            else:
                self._classes.append((1 << at, found.in_order()))
        self._stars = sum(1 << at for at, one in enumerate(self._sets) if one is None)
        self._stays_at_slash = self._stars if crosses_slash else 0
        self.accepting = 1 << len(self._sets)
        self.initial = self._closed(1)

    def _closed(self, states: int) -> int:
        return states | (states & self._stars) << 1

    def moves(self, code: int) -> tuple[int, int]:
        """Return the states that this character moves on, and those where it stays."""
        moved = self._literals.get(code, 0)
        for state, one in self._classes:
            if one.has_in_order(code):
                moved |= state
        return moved, self._stays_at_slash if code == _SLASH else self._stars

    def step(self, states: int, moves: tuple[int, int]) -> int:
        moved, stays = moves
        return self._closed((states & moved) << 1 | states & stays)

    def cuts(self) -> Iterator[int]:
        """Yield the codes at which a set begins, or which are the first behind one."""
        for one in self._sets:
            for low, high in one.ranges if one is not None else ():
                yield low
                yield high + 1

    def matches(self, text: str) -> bool:
        moves: dict[str, tuple[int, int]] = {}
        states = self.initial
        for one in text:
            move = moves.get(one)
            if move is None:
                move = moves[one] = self.moves(ord(one))
            states = self.step(states, move)
            if not states:
                return False
        return bool(states & self.accepting)


@dataclass(frozen=True, slots=True)
class _Letter:
    """A character for all that both automata treat alike."""

    code: int
    inner: tuple[int, int]
    outer: tuple[int, int]


def _letters(inner: _Automaton, outer: _Automaton, steps: Steps) -> list[_Letter]:
    codes = sorted({0, _SLASH, _SLASH + 1, *inner.cuts(), *outer.cuts()} - {_LAST_CODE + 1})
    steps.take(len(codes))
    alike: dict[tuple[tuple[int, int], tuple[int, int]], _Letter] = {}
    for code in codes:
        moves = inner.moves(code), outer.moves(code)
        known = alike.get(moves)
        if known is None or (not chr(known.code).isprintable() and chr(code).isprintable()):
            alike[moves] = _Letter(code, *moves)
    return list(alike.values())


def _bits(states: int) -> Iterator[int]:
    while states:
        lowest = states & -states
        yield lowest
        states ^= lowest


def _letters_of_states(letters: Sequence[_Letter]) -> dict[int, list[_Letter]]:
    """Return the letters by which each state of `inner` is left, or is stayed in."""
    found: dict[int, list[_Letter]] = defaultdict(list)
    for letter in letters:
        moved, stays = letter.inner
        for state in _bits(moved | stays):
            found[state].append(letter)
    return found


def counterexample(outer: Pattern, inner: Pattern, steps: Steps | None = None) -> str | None:
    """Return a text that `inner` matches and `outer` does not, or None: contained.

    Follows each state of `inner` together with the set of states that `outer` may be in after the
    same text. Raises TooManySteps where these are too many.
    """
    steps = steps or Steps()
    if outer == inner:
        return None
    if inner.literal is not None:
        return None if outer.matches(inner.literal) else inner.literal
    steps.take(len(inner.text) + len(outer.text))
    mine = _Automaton(_parse(inner.text, inner.crosses_slash), inner.crosses_slash)
    theirs = _Automaton(_parse(outer.text, outer.crosses_slash), outer.crosses_slash)
    letters = _letters_of_states(_letters(mine, theirs, steps))
    first = [(state, theirs.initial) for state in _bits(mine.initial)]
    came_from: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = dict.fromkeys(first)
    waiting = first
    while waiting:
        pair = waiting.pop()
        state, others = pair
        if state == mine.accepting:
            if not others & theirs.accepting:
                return _text_of(pair, came_from)
            continue
        for letter in letters.get(state, ()):
            reached = mine.step(state, letter.inner)
            steps.take()
            states_of_others = theirs.step(others, letter.outer)
            for one in _bits(reached):
                further = one, states_of_others
                if further not in came_from:
                    came_from[further] = pair, letter.code
                    waiting.append(further)
    return None


def _text_of(pair: tuple[int, int], came_from: dict[tuple[int, int], tuple[tuple[int, int], int] | None]) -> str:
    codes: list[int] = []
    while (step := came_from[pair]) is not None:
        pair, code = step
        codes.append(code)
    return "".join(map(chr, reversed(codes)))


def contains(outer: Pattern, inner: Pattern, total: Steps | None = None) -> bool:
    """Return whether `outer` matches every text that `inner` matches.

    Exact but for patterns that need more than MAX_STEPS, or what is left of `total`: those count as
    wider.
    """
    steps = Steps() if total is None else Steps(min(MAX_STEPS, total.left))
    begun = steps.left
    try:
        return counterexample(outer, inner, steps) is None
    except TooManySteps:
        return False
    finally:
        if total is not None:
            total.left -= begun - steps.left
