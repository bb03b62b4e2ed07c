"""Async iterators over messages that reach a client's operations.

Classes and not generators: a generator that is not read to its end is left to the garbage
collector, which cannot close it properly in an async program.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class ConvertedFeed(Generic[T]):
    """Iterates over the items of `feed`, each converted by `convert`; leaves out None."""

    def __init__(self, feed: AsyncIterator[Any], convert: Callable[[Any], T | None]) -> None:
        self._feed = feed
        self._convert = convert

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            thing = self._convert(await anext(self._feed))
            if thing is not None:
                return thing
