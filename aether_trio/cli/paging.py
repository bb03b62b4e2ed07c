"""Reads lists that the gateway gives in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

PAGE: Final = 500


async def in_pages(read: Callable[[int, int], Awaitable[Sequence[T]]]) -> AsyncIterator[Sequence[T]]:
    """Yield all pages of a list; `read(limit, offset)` asks for one."""
    count = 0
    while True:
        page = await read(PAGE, count)
        yield page
        count += len(page)
        if len(page) < PAGE:
            return
