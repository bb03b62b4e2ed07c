from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.client.errors import FeedOverflow, SessionEnded
from aether_trio.client.feeds import Feed, Feeds


async def test_a_lossy_feed_drops_its_oldest_and_counts() -> None:
    feed: Feed[int] = Feed(3, lossy=True)
    for number in range(5):
        feed.put(number)
    assert (feed.dropped, len(feed)) == (2, 3)
    feed.close()
    feed.put(9)
    assert [number async for number in feed] == [2, 3, 4]


async def test_another_one_breaks_loudly_after_what_it_has() -> None:
    feed: Feed[int] = Feed(2, lossy=False)
    for number in range(5):
        feed.put(number)
    assert [await anext(feed), await anext(feed)] == [0, 1]
    with pytest.raises(FeedOverflow):
        await anext(feed)


async def test_a_reader_that_waits_is_woken_by_news_and_by_the_end() -> None:
    feed: Feed[int] = Feed(2, lossy=False)
    found: list[int] = []

    async def read() -> None:
        with pytest.raises(SessionEnded):
            async for number in feed:
                found.append(number)  # noqa: PERF401 - what came before the failure counts

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for number in (1, 2, 3):
            await trio.testing.wait_all_tasks_blocked()
            feed.put(number)
        await trio.testing.wait_all_tasks_blocked()
        feed.close(SessionEnded("X", ""))
    assert found == [1, 2, 3]


async def test_every_listener_hears_until_the_block_ends() -> None:
    feeds = Feeds()
    one: Feed[int] = Feed(9, lossy=True, match=lambda number: number % 2 == 0)
    two: Feed[int] = Feed(9, lossy=True)
    with feeds.opened(one, "a", "b"), feeds.opened(two, "a"):
        for number in range(4):
            feeds.publish("a", number)
        feeds.publish("b", 10)
        feeds.publish("c", 12)
    feeds.publish("a", 14)
    assert [number async for number in one] == [0, 2, 10]
    assert [number async for number in two] == [0, 1, 2, 3]


def test_a_feed_holds_something() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Feed(0, lossy=True)
