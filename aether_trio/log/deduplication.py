"""Recognises repeated sends: remembers which sequence numbers the log has.

A client of the framed transport numbers its sends, and may send again what was not acknowledged
when its connection broke (docs/wire.md, "Sending again"). Numbers belong to a *publisher*: 16
random bytes that the client made up when it began to count, under its identity. Of each identity
the latest publisher is kept.

Numbers are written in the transaction of the messages that bear them. A high-water mark would not
do: a number below it may have been refused, or may never have arrived. Another node may have
written the row meanwhile, so memory is joined with it whenever a client connects.

Invariants: a number is either unknown, on its way to the log (`pending`), or in `ranges`, which is
sorted and neither touches nor overlaps; at or below `floor` nothing is known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import structlog
import trio

from aether_trio.concurrency.kicks import Kickable
from aether_trio.log import topic_sql
from aether_trio.model.clock import Clock
from aether_trio.model.errors import RequestError
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.existing_names import ExistingNames

logger = structlog.get_logger("aether.publishers")

IS_NEW: Final = 0
IS_COMMITTED: Final = -1
IS_FORGOTTEN: Final = -2

TOUCH_SHARE: Final = 4
"""A row in use is renewed at a quarter of its lifetime, so that the sweep leaves it."""

SHORTEST_SWEEP_S: Final = 10.0

_RANGES: Final = msgspec.msgpack.Decoder(list[list[int]])


class PublisherConnection(Protocol):
    """The client connection that is told which of a publisher's sends were refused."""

    @property
    def outbox(self) -> Kickable:
        """Writes to the client the refusals that `note_refusal` noted."""

    def note_refusal(self, number: int, error: RequestError) -> bool:
        """Note a refused append; return whether it is a send of this connection."""


class Publisher:
    """Sequence numbers of a publisher's sends: pending ones, and committed ranges."""

    __slots__ = (
        "_committing",
        "_in_flight",
        "_next_ranges",
        "connection",
        "highest",
        "identity",
        "pending",
        "ranges",
        "token",
        "window",
        "written_ms",
    )

    def __init__(self, identity: str, token: bytes, window: int, ranges: list[list[int]], written_ms: int) -> None:
        self.identity = identity
        self.token = token
        self.window = window
        self.ranges = ranges
        self.written_ms = written_ms
        self.highest = ranges[-1][1] if ranges else 0
        self.connection: PublisherConnection | None = None
        """The latest connection, which is told what becomes of pending numbers."""
        self.pending: dict[int, int] = {}
        self._in_flight: deque[tuple[int, int]] = deque()
        self._committing: list[int] = []
        self._next_ranges: list[list[int]] = []

    @property
    def floor(self) -> int:
        """The greatest sequence number for which it is forgotten whether it committed."""
        return max(self.highest - self.window, 0)

    @property
    def idle(self) -> bool:
        """Whether no connection uses the publisher, and the database has all numbers."""
        return self.connection is None and not self.pending

    def connect(self, connection: PublisherConnection) -> None:
        """Report refusals of pending sends to this connection from now on."""
        self.connection = connection

    def judge(self, seq: int) -> int:
        """Return IS_NEW, IS_COMMITTED or IS_FORGOTTEN, or the append of a pending send."""
        if seq > self.highest:
            return IS_NEW
        number = self.pending.get(seq)
        if number is not None:
            return number
        at = bisect_right(self.ranges, seq, key=_first)
        if at and seq <= self.ranges[at - 1][1]:
            return IS_COMMITTED
        return IS_FORGOTTEN if seq <= self.floor else IS_NEW

    def appended(self, seq: int, number: int) -> None:
        """Note that send `seq` is pending as the append `number` of the log."""
        self.pending[seq] = number
        self._in_flight.append((number, seq))
        self.highest = max(self.highest, seq)

    def join(self, ranges: Iterable[list[int]], written_ms: int) -> None:
        """Add committed ranges of numbers from the publisher's row in the database."""
        ranges = list(ranges)
        if ranges:
            self.highest = max(self.highest, ranges[-1][1])
            floor = self.highest - self.window
            self.ranges = _union_of_ranges(self.ranges, ranges, floor)
            if self._committing:
                self._next_ranges = _union_of_ranges(self._next_ranges, ranges, floor)
        self.written_ms = max(self.written_ms, written_ms)

    def begin(self, upto: int) -> bytes:
        """Encode the committed send numbers up to append `upto`, for the publisher's row."""
        self._take(upto)
        self._next_ranges = _ranges_with(self.ranges, self._committing, self.highest - self.window)
        return msgspec.msgpack.encode(self._next_ranges)

    def committed(self, now_ms: int) -> None:
        """Note that the send numbers that `begin` encoded are committed to the database."""
        self.ranges = self._next_ranges
        self.written_ms = now_ms
        self._settle()

    def retry_in_parts(self) -> None:
        """Make numbers pending again: their commit group is written again in parts."""
        pending = self.pending
        self._in_flight.extendleft((pending[seq], seq) for seq in reversed(self._committing))
        self._committing = []
        self._next_ranges = []

    def refused(self, upto: int) -> None:
        """Free the numbers up to this append, whose messages were not written."""
        self._take(upto)
        self._settle()

    def _take(self, upto: int) -> None:
        in_flight, committing = self._in_flight, self._committing
        while in_flight and in_flight[0][0] <= upto:
            committing.append(in_flight.popleft()[1])

    def _settle(self) -> None:
        for seq in self._committing:
            del self.pending[seq]
        self._committing = []
        self._next_ranges = []


def _first(one: list[int]) -> int:
    return one[0]


def _ranges_with(ranges: list[list[int]], numbers: Iterable[int], floor: int) -> list[list[int]]:
    """Return new ranges with these numbers, and without all numbers up to `floor`."""
    merged = [list(one) for one in ranges]
    for seq in numbers:
        if merged and seq == merged[-1][1] + 1:
            merged[-1][1] = seq
        elif not merged or seq > merged[-1][1]:
            merged.append([seq, seq])
        else:
            _insert_into_ranges(merged, seq)
    while merged and merged[0][1] <= floor:
        del merged[0]
    if merged and merged[0][0] <= floor:
        merged[0][0] = floor + 1
    return merged


def _union_of_ranges(ones: Iterable[list[int]], others: Iterable[list[int]], floor: int) -> list[list[int]]:
    """Return the union of both ranges, without all numbers up to `floor`."""
    joined: list[list[int]] = []
    for first, last in sorted([*ones, *others]):
        if last <= floor:
            continue
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([max(first, floor + 1), last])
    return joined


def _insert_into_ranges(merged: list[list[int]], seq: int) -> None:
    at = bisect_right(merged, seq, key=_first)
    joins_left = at > 0 and merged[at - 1][1] >= seq - 1
    joins_right = at < len(merged) and merged[at][0] == seq + 1
    if joins_left and joins_right:
        merged[at - 1][1] = merged[at][1]
        del merged[at]
    elif joins_left:
        merged[at - 1][1] = max(merged[at - 1][1], seq)
    elif joins_right:
        merged[at][0] = seq
    else:
        merged.insert(at, [seq, seq])


class PublisherStore:
    """Keeps the publishers of connected identities in memory; sweeps old rows."""

    def __init__(self, database: Database, clock: Clock, *, window: int, lifetime_s: int) -> None:
        self._database = database
        self._clock = clock
        self._window = window
        self._lifetime_ms = lifetime_s * 1000
        self._live: dict[str, Publisher] = {}
        self._names: ExistingNames[str] = ExistingNames()
        """The identities whose publishers may have rows."""

    def __len__(self) -> int:
        return len(self._live)

    async def load_names(self) -> None:
        """Read which identities have publishers, so that `find` reads no others."""
        await self._names.load(self._database, topic_sql.publisher_names, "", "names of publishers", logger)

    async def find(self, identity: str, token: bytes) -> Callable[[], Publisher]:
        """Read a publisher's row; return a function that claims it for its identity."""
        in_memory = self._known(identity, token) is not None and not self._database.shared
        rows = (
            []
            if in_memory or not self._names.may_exist(identity)
            else await self._database.read_small(lambda: topic_sql.publisher_numbers(identity))
        )

        def claim() -> Publisher:
            oldest_ms = self._clock.now_ms() - self._lifetime_ms
            ranges, written_ms = [], 0
            for stored, numbers, stored_ms in rows:
                if stored == token and stored_ms >= oldest_ms:
                    ranges, written_ms = _RANGES.decode(numbers), stored_ms
            known = self._known(identity, token)
            if known is None:
                self._names.add(identity)
                # Another connection's publisher may be live; its appends are settled without it.
                known = self._live[identity] = Publisher(identity, token, self._window, ranges, written_ms)
            elif rows:
                known.join(ranges, written_ms)
            return known

        return claim

    def _known(self, identity: str, token: bytes) -> Publisher | None:
        known = self._live.get(identity)
        return known if known is not None and known.token == token else None

    def release(self, publisher: Publisher, connection: PublisherConnection) -> None:
        """Note the end of a connection; pending sends keep the publisher in memory."""
        if publisher.connection is connection:
            publisher.connection = None
        self.forget_if_idle(publisher)

    def forget_if_idle(self, publisher: Publisher) -> None:
        """Forget a publisher that no connection uses and the database knows in full."""
        if publisher.idle and self._live.get(publisher.identity) is publisher:
            age_ms = self._clock.now_ms() - publisher.written_ms
            if publisher.ranges and age_ms * TOUCH_SHARE > self._lifetime_ms:
                return  # the next sweep renews its row and lets it go
            del self._live[publisher.identity]

    async def sweep_forever(self) -> None:
        """Call `sweep` until cancelled, before any live publisher's row gets too old."""
        while True:
            await trio.sleep(max(self._lifetime_ms / 1000 / TOUCH_SHARE / 2, SHORTEST_SWEEP_S))
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.warning("removing old publishers is postponed, as storage does not answer", reason=str(error))

    async def sweep(self) -> int:
        """Renew connected publishers' rows; delete old rows and return their number."""
        now_ms = self._clock.now_ms()
        live = [one for one in self._live.values() if one.ranges and not one.pending]
        old = [one for one in live if (now_ms - one.written_ms) * TOUCH_SHARE > self._lifetime_ms]
        keys = [(one.identity, one.token, now_ms) for one in old]
        deleted = await self._database.run(lambda: topic_sql.sweep_publishers(keys, now_ms - self._lifetime_ms))
        for one in old:
            one.written_ms = max(one.written_ms, now_ms)
        for one in list(self._live.values()):
            self.forget_if_idle(one)
        return deleted
