"""Numbered sends of a client that moves between nodes: repeated, written once.

Two nodes on one database, in virtual time. A node that the client has left may remember it, with a
connection that is not closed yet.
"""

from __future__ import annotations

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aether_trio.delivery.receipts import Receipts
from aether_trio.log.deduplication import IS_COMMITTED, IS_FORGOTTEN, IS_NEW, Publisher, PublisherStore
from tests.helpers.clocks import VirtualClock
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import open_bench
from tests.log.test_deduplication import LIMITS, ME, TOKEN, WINDOW, Client, Script, check_receipts, steps_on_a_node

on_postgres = pytest.mark.parametrize("store", ["postgres"], indirect=True)

steps = steps_on_a_node | st.tuples(st.just("move"), st.booleans(), st.booleans())


async def wander(database: InlineDatabase, script: Script) -> Client:
    """Run a script; `move` changes the node, with or without receipts, cut or not."""
    client = Client()
    database.renew()
    lingering: list[tuple[PublisherStore, Receipts]] = []
    async with open_bench(database, LIMITS) as one, open_bench(database, LIMITS) as two:
        clock = VirtualClock(trio.current_time)
        nodes = [(PublisherStore(database, clock, window=WINDOW, lifetime_s=3600), bench) for bench in (one, two)]
        at = 0
        store, bench = nodes[at]
        await client.connect(store, bench)
        for step in [*script, ("move", False, True)]:
            match step:
                case ("move", reads, closes):
                    # Before that the identity is not given away (session/identity_locks.py).
                    await bench.log.drain()
                    if reads:
                        client.read()
                    assert client.receipts is not None
                    lingering.append((store, client.receipts))
                    client.receipts = None
                    if closes:
                        for place, receipts in lingering:
                            assert receipts.publisher is not None
                            place.release(receipts.publisher, receipts)
                        lingering.clear()
                    at = 1 - at
                    store, bench = nodes[at]
                    await client.connect(store, bench)
                case _:
                    await client.step(store, bench, step)
        await client.finish(store, bench)
    return client


@on_postgres
def test_a_receipt_is_the_truth_on_whichever_node(store: Store) -> None:
    @settings(max_examples=store.examples(240))
    @given(st.lists(steps, min_size=5, max_size=30))
    @example([("send", [1]), ("move", True, False), ("send", [1]), ("move", False, False)])
    @example([("send", [1, 1]), ("move", False, True), ("send", [1]), ("move", False, True), ("send", [1])])
    def holds(script: Script) -> None:
        check_receipts(store, lambda database: wander(database, script))

    holds()


ranges = st.sets(st.integers(1, 60), max_size=40).map(
    lambda seqs: [[seq, seq] for seq in sorted(seqs)]  # as a merge makes them whole
)


@given(ranges, ranges, st.integers(10, 80))
def test_what_is_joined_is_the_set_of_both(mine: list[list[int]], theirs: list[list[int]], window: int) -> None:
    one = Publisher(ME, TOKEN, window, [], 0)
    one.join(mine, 1)
    one.join(theirs, 2)
    committed = {seq for seq, _ in [*mine, *theirs]}
    assert one.highest == max(committed, default=0)
    for seq in range(1, 70):
        expected = IS_FORGOTTEN if seq <= one.floor else IS_COMMITTED if seq in committed else IS_NEW
        assert one.judge(seq) == expected, (seq, one.ranges)
    for (_, last), (first, _) in zip(one.ranges, one.ranges[1:], strict=False):
        assert last + 1 < first


def test_what_is_joined_during_a_commit_is_kept() -> None:
    one = Publisher(ME, TOKEN, WINDOW, [], 0)
    one.appended(7, 41)
    one.begin(41)
    one.join([[1, 3]], 1)
    one.committed(2)
    assert one.ranges == [[1, 3], [7, 7]]
    one.appended(8, 42)
    one.begin(42)
    one.join([[5, 5]], 1)
    one.refused(42)
    assert one.ranges == [[1, 3], [5, 5], [7, 7]]
