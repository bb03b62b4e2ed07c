"""Finds the id that a person has written the beginning of.

Commands take the first characters of an id where they take an id, as long as one id begins with
them. A whole UUID is looked up nowhere. Any other text is compared with the ids that the caller may
list. Text that none of them begins with is left as it is, for the gateway to refuse.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from aether_trio.cli import exits

Listed: TypeAlias = tuple[str, str]
"""An id, and what says to a person which one it is."""

SHORTEST: Final = 4
"""Characters of an id that are enough, if they are of one id."""
MOST_LISTED: Final = 50_000
"""Ids that a prefix is compared with; behind these only whole ids are known."""
_SHOWN: Final = 10
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


async def full_id(given: str, what: str, pages: AsyncIterable[Iterable[Listed]]) -> str:
    """Return the id that begins with `given`, or `given`. Raises CliError.

    `pages` lists the ids of the caller; `what` is the word for the things.
    """
    if is_whole(given) or not given:
        return given
    found: dict[str, str] = {}
    looked = 0
    async for page in pages:
        for name, about in page:
            looked += 1
            if name == given:
                return given
            if name.startswith(given):
                found[name] = about
        if len(found) > _SHOWN or looked > MOST_LISTED:
            break
    return chosen(given, what, found, more=looked > MOST_LISTED)


def is_whole(given: str) -> bool:
    """Whether a text is a whole id, and no beginning of one."""
    return _UUID.fullmatch(given) is not None


def chosen(given: str, what: str, found: dict[str, str], *, more: bool = False) -> str:
    """Return the only id found, or `given` if there is none. Raises CliError."""
    if not found:
        return given
    if len(found) == 1 and len(given) >= SHORTEST and not more:
        return next(iter(found))
    lines = [f"  {name}  {about}".rstrip() for name, about in sorted(found.items())[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append("  ...")
    if more:
        problem = f"there are too many {what}s to compare {given} with all of them: give the whole id"
    elif len(found) == 1:
        problem = f"{given} is too short for the id of a {what}: give {SHORTEST} characters or more"
    else:
        problem = f"{given} is the beginning of more than one {what}: give more of the id"
    raise exits.CliError("\n".join([problem, *lines]), exits.USAGE, lines=True)


async def single(page: Callable[[], Awaitable[Iterable[Listed]]]) -> AsyncIterable[Iterable[Listed]]:
    """Yield what `page` returns as the only page."""
    yield await page()
