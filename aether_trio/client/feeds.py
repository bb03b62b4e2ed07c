"""A client's feeds: bounded streams of progress, signals, assignments and so on.

`put` never waits, so a reader of the connection is never held up by who does not listen. A feed
that is full drops its oldest (lossy), or breaks: the next read raises FeedOverflow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from aether_trio.client.errors import FeedOverflow

CONNECTION_LOST: Final = "connection_lost"
"""The case of a feed that gets a ConnectionLost at the end of each connection."""

T = TypeVar("T")


class Feed(Generic[T]):
    """An async iterator over gateway messages of some kinds, as they come.

    It ends when the client does, or raises why that has failed. `len` is how many things wait,
    `capacity` how many may. When several tasks read a feed, each thing goes to one of them.
    """

    def __init__(
        self,
        capacity: int,
        *,
        lossy: bool,
        match: Callable[[Any], bool] | None = None,
        convert: Callable[[Any], T] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of the feed is {capacity}; it must be at least 1")
        self.capacity = capacity
        self.lossy = lossy
        self.dropped = 0
        """How many unread things a lossy feed has dropped."""
        self._match = match
        self._convert = convert
        self._waiting: deque[Any] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._news = anyio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, thing: Any) -> None:
        """Add an item if it matches; an error of `match` closes the feed. Never waits."""
        if self._closed:
            return
        try:
            matches = self._match is None or self._match(thing)
        except Exception as error:
            self.close(error)
            return
        if not matches:
            return
        if len(self._waiting) >= self.capacity:
            if not self.lossy:
                self.close(
                    FeedOverflow(
                        f"the feed has lost items, as more than its {self.capacity} were unread; read it faster"
                    )
                )
                return
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(thing)
        self._news.set()

    def close(self, failure: BaseException | None = None) -> None:
        """End the feed: what waits can be read, then iteration ends or raises `failure`."""
        if not self._closed:
            self._closed = True
            self._failure = failure
            self._news.set()

    def get_nowait(self) -> T | None:
        """Return the next item, or None when nothing waits."""
        return self._take() if self._waiting else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            await self._wait_for_news()
        return self._take()

    async def _wait_for_news(self) -> None:
        """Wait for an item. Raises the feed's failure, or StopAsyncIteration at the end."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StopAsyncIteration
        if self._news.is_set():
            self._news = anyio.Event()
        await self._news.wait()

    def _take(self) -> T:
        thing = self._waiting.popleft()
        return thing if self._convert is None else self._convert(thing)


class Feeds:
    """The open feeds of a client, by the oneof cases that they listen to."""

    def __init__(self) -> None:
        self._by_case: dict[str, list[Feed[Any]]] = {}
        self._all: set[Feed[Any]] = set()

    def publish(self, case: str, thing: Any) -> None:
        """Put a gateway message into every feed that listens to its oneof case."""
        for feed in self._by_case.get(case, ()):
            feed.put(thing)

    def has(self, case: str) -> bool:
        """Return whether any feed listens to this oneof case."""
        return bool(self._by_case.get(case))

    def add(self, feed: Feed[Any], *cases: str) -> None:
        """Let a feed listen to these oneof cases."""
        self._all.add(feed)
        for case in cases:
            self._by_case.setdefault(case, []).append(feed)

    def remove(self, feed: Feed[Any]) -> None:
        """Let a feed listen to nothing more."""
        self._all.discard(feed)
        for feeds in self._by_case.values():
            if feed in feeds:
                feeds.remove(feed)

    @contextmanager
    def opened(self, feed: Feed[Any], *cases: str) -> Iterator[Feed[Any]]:
        """Make a feed that listens to these oneof cases while the block lasts."""
        self.add(feed, *cases)
        try:
            yield feed
        finally:
            self.remove(feed)
            feed.close()

    def close(self, failure: BaseException | None) -> None:
        """Close all feeds of the client."""
        for feed in list(self._all):
            feed.close(failure)
