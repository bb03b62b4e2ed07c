"""Patterns with `*` and `?`, as operators write them for workspaces and identities.

`*` stands for any characters but "/", `?` for one; a lone `*` stands for everything. A pattern for
an identity is compared part by part, as an identity is written: no star reaches over the "::"
between two parts, and what the parts themselves hold (":" may be in them) makes no other parts of
them.

Invariant: a comparison takes time in proportion to pattern times text at most, whatever they are.
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
    """Each star takes the shortest text up to the next fixed piece, and never tries another.

    That is enough: a later place of that piece can only make it harder for what follows (as in
    CPython's fnmatch). Between stars the expression has nothing to try again, so there is no
    exponential search as with one `[^/]*` after another.
    """
    first, *rest = ["".join("[^/]" if one == "?" else re.escape(one) for one in piece) for piece in pattern.split("*")]
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    steps = "".join(f"(?>[^/]*?{piece})" for piece in middle if piece)
    return re.compile(f"{first}{steps}[^/]*{last}", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern stands for the whole text."""
    return pattern == ANY or _glob(pattern).fullmatch(text) is not None


def fits_identity(pattern: str, identity: Identity) -> bool:
    """Whether a pattern for identities means this one: `ag::*::echo::*`, a user's id, or a lone `*`
    for all.
    """
    if pattern == ANY:
        return True
    wanted = pattern.split(SEPARATOR)
    if len(wanted) == 1:
        return bool(identity.user_id) and matches(pattern, identity.user_id)
    parts = identity.text.split(SEPARATOR)
    return len(parts) == len(wanted) and all(map(matches, wanted, parts))


def identity_pattern_problem(pattern: str) -> str | None:
    """Why a pattern can mean no identity, for the operator who wrote it.

    None when it may.
    """
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
