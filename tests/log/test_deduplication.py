"""Numbered sends against a model client that repeats sends without a receipt.

What the client was told decides: an acknowledged message is in the log once, a refused one is not
there, and that holds over reconnects in the middle of everything, commits that fail, restarts,
kills, and another client's turn in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aether_trio.delivery.receipts import Receipts
from aether_trio.log.deduplication import IS_COMMITTED, IS_NEW, Publisher, PublisherStore
from aether_trio.log.topic_log import LogLimits
from aether_trio.model.errors import Code, RequestError
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import run_in_virtual_time
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase, open_inline
from tests.helpers.log_bench import Bench, Reader, open_bench

TOPIC = "ag::w::a::1"
ME = "ag::w::me::1"
TOKEN = b"p" * 16
WINDOW = 32

Script = list[tuple]  # type: ignore[type-arg]
LIMITS = LogLimits(group_messages=5, cursor_flush_s=0.05)

steps_on_a_node = st.one_of(
    st.tuples(st.just("send"), st.lists(st.integers(1, 4), min_size=1, max_size=8)),
    st.tuples(st.just("reconnect"), st.booleans()),
    st.tuples(st.just("read")),
    st.tuples(st.just("fail"), st.integers(1, 2)),
    st.tuples(st.just("run"), st.integers(1, 12)),
)
steps = st.one_of(
    steps_on_a_node,
    st.tuples(st.just("refuse")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("restart"), st.booleans()),
)


class Client:
    """Sends numbers, keeps what has no receipt, sends that again after each reconnect."""

    def __init__(self) -> None:
        self.last = 0
        self.messages = 0
        self.open: dict[int, bytes] = {}
        self.acked: list[bytes] = []
        self.refused: list[bytes] = []
        self.receipts: Receipts | None = None
        self.reader = Reader()

    async def connect(self, store: PublisherStore, bench: Bench) -> None:
        claim = await store.find(ME, TOKEN)
        old, self.reader = self.receipts, Reader()
        self.receipts = Receipts(bench.log, self.reader.outbox, claim())
        if old is not None and old.publisher is not None:
            store.release(old.publisher, old)
        for seq, payload in self.open.items():
            self.give(bench, seq, payload)

    def send(self, bench: Bench, gap: int) -> None:
        if len(self.open) >= WINDOW or (self.open and self.last + gap - next(iter(self.open)) >= WINDOW):
            return
        self.last += gap
        self.messages += 1
        payload = self.open[self.last] = b"%d" % self.messages
        self.give(bench, self.last, payload)

    def give(self, bench: Bench, seq: int, payload: bytes) -> None:
        receipts = self.receipts
        assert receipts is not None
        if receipts.wanted(seq):  # it keeps to the window, so none is forgotten
            number = bench.log.append_nowait(bench.log.topics.ensure(TOPIC), payload, receipts)
            receipts.appended(seq, number)

    def read(self) -> None:
        """What the gateway has said so far."""
        assert self.receipts is not None
        refused, acked = self.receipts.take()
        for seq, _ in refused:
            self.refused.append(self.open.pop(seq))
        for seq in [one for one in self.open if one <= acked]:
            self.acked.append(self.open.pop(seq))

    async def step(self, store: PublisherStore, bench: Bench, step: tuple) -> None:  # type: ignore[type-arg]
        """One of `steps_on_a_node`, on this node."""
        match step:
            case ("send", gaps):
                for gap in gaps:
                    self.send(bench, gap)
            case ("reconnect", reads):
                if reads:
                    self.read()
                self.open = {seq: one for seq, one in self.open.items() if not one.startswith(b"refused")}
                await self.connect(store, bench)
            case ("read",):
                self.read()
            case ("fail", count):
                bench.database.fail_writes = count
            case ("run", turns):
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()

    async def finish(self, store: PublisherStore, bench: Bench) -> None:
        """Send until each message has its receipt."""
        bench.database.fail_writes = 0
        await bench.log.drain()
        self.read()
        await self.connect(store, bench)
        await bench.log.drain()
        self.read()


async def run(database: InlineDatabase, script: Script) -> Client:
    client = Client()
    lives: list[Script] = [[]]
    for step in script:
        lives[-1].append(step)
        if step[0] == "restart":
            lives.append([])
    for life in lives:
        database.renew()
        async with open_bench(database, LIMITS) as bench:
            clock = VirtualClock(trio.current_time)
            store = PublisherStore(database, clock, window=WINDOW, lifetime_s=3600)
            client.receipts = None
            await client.connect(store, bench)
            for step in life:
                match step:
                    case ("refuse",):
                        client.last += 1
                        payload = client.open[client.last] = b"refused %d" % client.last
                        client.receipts.refuse(client.last, RequestError(Code.INVALID_TOPIC, "no"))
                        assert payload not in client.acked
                    case ("settle",):
                        await bench.log.drain()
                    case ("sweep",):
                        database.fail_writes = 0
                        await store.sweep()
                    case ("restart", is_kill):
                        if is_kill:
                            database.failing = True
                            await bench.log.drain()
                        client.open = {seq: one for seq, one in client.open.items() if not one.startswith(b"refused")}
                    case _:
                        await client.step(store, bench, step)
            if not life or life[-1][0] != "restart":
                await client.finish(store, bench)
    return client


def check_receipts(store: Store, play: Callable[[InlineDatabase], Awaitable[Client]]) -> None:
    """What the client was told at the end is what is stored."""
    with open_inline(store, "log") as database:
        client = run_in_virtual_time(lambda: play(database))
        stored = [row[0] for row in database.query("SELECT data FROM messages ORDER BY message_key")]
    assert client.open == {}
    assert len(stored) == len(set(stored)), "something is there twice"
    assert set(stored) == set(client.acked)
    assert not set(stored) & set(client.refused)


def test_a_receipt_is_the_truth(store: Store) -> None:
    @settings(max_examples=store.examples(150))
    @given(st.lists(steps, min_size=10, max_size=60))
    @example([("fail", 1), ("send", [1, 1, 1, 1, 1, 1]), ("restart", False)])
    @example([("send", [1]), ("fail", 1), ("settle",), ("fail", 1), ("send", [1]), ("settle",)])
    def holds(script: Script) -> None:
        check_receipts(store, lambda database: run(database, script))

    holds()


def publisher(window: int = 100) -> Publisher:
    return Publisher(ME, TOKEN, window, [], 0)


def test_numbers_of_a_group_that_is_tried_in_parts_are_committed_with_theirs() -> None:
    one = publisher()
    for seq, number in ((7, 41), (8, 42), (9, 43)):
        one.appended(seq, number)
    one.begin(43)
    one.retry_in_parts()
    assert [one.judge(seq) for seq in (7, 8, 9)] == [41, 42, 43]
    one.begin(41)
    one.committed(0)
    one.refused(42)
    one.begin(43)
    one.committed(0)
    assert [one.judge(seq) for seq in (7, 8, 9)] == [IS_COMMITTED, IS_NEW, IS_COMMITTED]


@given(st.lists(st.integers(1, 60), unique=True, max_size=40), st.integers(10, 80))
def test_ranges_are_the_set_of_what_was_committed(numbers: list[int], window: int) -> None:
    one = publisher(window)
    for place, seq in enumerate(numbers):
        if one.judge(seq) == IS_NEW:
            one.appended(seq, place + 1)
        one.begin(place + 1)
        one.committed(0)
    kept = {seq for seq in numbers if seq > one.floor}
    for seq in range(max(one.floor, 0) + 1, 70):
        assert (one.judge(seq) == IS_COMMITTED) == (seq in kept), (seq, one.ranges)
    for (_, last), (first, _) in zip(one.ranges, one.ranges[1:], strict=False):
        assert last + 1 < first


async def test_an_identity_keeps_its_latest_publisher(database: InlineDatabase) -> None:
    async with open_bench(database) as bench:
        store = PublisherStore(database, VirtualClock(trio.current_time), window=WINDOW, lifetime_s=3600)
        for token in (TOKEN, b"q" * 16):
            receipts = Receipts(bench.log, Reader().outbox, (await store.find(ME, token))())
            receipts.appended(1, bench.log.append_nowait(bench.log.topics.ensure(TOPIC), token, receipts))
            await bench.log.drain()
            assert receipts.publisher is not None
            store.release(receipts.publisher, receipts)
        assert [row[0] for row in database.query("SELECT publisher FROM publishers")] == [b"q" * 16]
        assert (await store.find(ME, TOKEN))().judge(1) == IS_NEW


async def test_the_sweep_forgets_who_is_gone_for_long_and_renews_who_is_here(database: InlineDatabase) -> None:
    async with open_bench(database) as bench:
        store = PublisherStore(database, VirtualClock(trio.current_time), window=WINDOW, lifetime_s=100)
        here, gone = [
            Receipts(bench.log, Reader().outbox, (await store.find(name, TOKEN))()) for name in ("here", "gone")
        ]
        for receipts in (here, gone):
            receipts.appended(1, bench.log.append_nowait(bench.log.topics.ensure(TOPIC), b"x", receipts))
        await bench.log.drain()
        assert gone.publisher is not None
        store.release(gone.publisher, gone)
        await trio.sleep(60)
        assert await store.sweep() == 0
        await trio.sleep(60)
        assert await store.sweep() == 1
        assert database.query("SELECT identity FROM publishers") == [("here",)]
        assert len(store) == 1
