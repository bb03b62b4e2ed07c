"""Matches workspaces and identities with patterns of `*` and `?`.

`*` matches any characters but "/", `?` matches one; a lone `*` matches everything. A pattern for an
identity is compared part by part, as an identity is written: a star never matches the "::" between
two parts, and a ":" within a part does not end it.

Invariant: a comparison takes time in proportion to pattern times text at most, for any input.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from aether_trio.model.identity import SEPARATOR, Identity, shape_of

ANY: Final = "*"
_WILD: Final = frozenset("*?")
_FEWEST_PARTS: Final = 2
_MOST_PARTS: Final = 4


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """Compile a pattern: each star takes the shortest text up to the next fixed piece.

    The match never tries another text for a star. That is enough: a later place of the piece can
    only make it harder for the rest (as in CPython's fnmatch). So there is no exponential search.
    """
    first, *rest = ["".join("[^/]" if one == "?" else re.escape(one) for one in piece) for piece in pattern.split("*")]
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    steps = "".join(f"(?>[^/]*?{piece})" for piece in middle if piece)
    return re.compile(f"{first}{steps}[^/]*{last}", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches a whole text."""
    return pattern == ANY or _glob(pattern).fullmatch(text) is not None


def fits_identity(pattern: str, identity: Identity) -> bool:
    """Return whether a pattern (`ag::*::echo::*`, a user id, `*`) matches an identity."""
    if pattern == ANY:
        return True
    wanted = pattern.split(SEPARATOR)
    if len(wanted) == 1:
        return bool(identity.user_id) and matches(pattern, identity.user_id)
    parts = identity.text.split(SEPARATOR)
    return len(parts) == len(wanted) and all(map(matches, wanted, parts))


def identity_pattern_problem(pattern: str) -> str | None:
    """Return why an identity pattern matches nothing, for its author; None if it may."""
    prefix, *parts = pattern.split(SEPARATOR)
    if not parts:
        return None
    if _WILD.isdisjoint(prefix):
        shape = shape_of(prefix)
        if shape is None:
            return f"{pattern!r} begins with no kind of identity; write ag::*::*::* for agents, say, or a user's id"
        if shape.count(SEPARATOR) != len(parts):
            return f"{pattern!r} has {len(parts) + 1} parts between '::', where an identity is {shape}"
    elif not _FEWEST_PARTS <= len(parts) + 1 <= _MOST_PARTS:
        return f"{pattern!r} has {len(parts) + 1} parts between '::'; an identity has {_FEWEST_PARTS} to {_MOST_PARTS}"
    return None
