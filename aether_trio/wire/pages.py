"""Cuts a page of a list to what fits into one answer.

What others have written must not make a list too large to be read: a page that ends early says, by
the list's total, that there is more behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

PAGE_BYTES: Final = 2 * 1024 * 1024
"""Of the entries of a page; a client takes twice as much (model/limits.py)."""


class Sized(Protocol):
    """A message that knows its encoded size."""

    def ByteSize(self) -> int: ...  # noqa: N802


S = TypeVar("S", bound=Sized)


def page_that_fits(entries: Iterable[S], most: int = PAGE_BYTES) -> list[S]:
    """Return the first entries of at most `most` bytes together; one at least."""
    page: list[S] = []
    size = 0
    for entry in entries:
        size += entry.ByteSize()
        if page and size > most:
            break
        page.append(entry)
    return page
