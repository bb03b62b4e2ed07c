"""Which of a publisher's sequence numbers are in the log, so that a send which is repeated is not a second message.

A client of the framed topic numbers its sends and may send again what was not acknowledged when its connection broke
(docs/wire.md, "Sending again"). Numbers belong to a *publisher*: 16 random bytes that the client made up when it began
to count, under the identity that it was accepted for. Of each identity the latest publisher is kept.

Numbers are written in the transaction of the messages that bear them, so a crash forgets both or neither. A high-water
mark would not do: a number in front of it may have been refused, or may never have come.

Where several nodes write the log, an identity may have been on another one since a publisher was last used here. So what is in memory is
joined with the row whenever a client comes; both are numbers that are committed.

Invariants: a number is either unknown, on its way to the log (`pending`), or in `ranges`; what lies at or below `floor` is not
known any more; `ranges` is sorted, and its ranges neither touch nor overlap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from aether_trio.log import programs
from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, StorageUnavailable

if TYPE_CHECKING:
    from aether_trio.delivery.receipts import Receipts

logger = structlog.get_logger("aether.publishers")

IS_NEW: Final = 0
IS_COMMITTED: Final = -1
IS_FORGOTTEN: Final = -2

TOUCH_SHARE: Final = 4
"""A live publisher's row is renewed when it is a quarter of its lifetime old, so that the sweep leaves it."""

LEAST_SWEEP_S: Final = 10.0

_RANGES: Final = msgspec.msgpack.Decoder(list[list[int]])


class Publisher:
    """One publisher's numbers. `window` is how many of the latest are remembered."""

    __slots__ = (
        "_committing",
        "_in_flight",
        "_next_ranges",
        "highest",
        "holder",
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
        self.holder: Receipts | None = None
        """Who is to be told what becomes of pending numbers: the latest connection."""
        self.pending: dict[int, int] = {}
        self._in_flight: deque[tuple[int, int]] = deque()
        self._committing: list[int] = []
        self._next_ranges: list[list[int]] = []

    @property
    def floor(self) -> int:
        """The greatest number of which nothing can be said."""
        return max(self.highest - self.window, 0)

    @property
    def idle(self) -> bool:
        """Whether the database knows all that this object knows, and nobody uses it."""
        return self.holder is None and not self.pending

    def judge(self, seq: int) -> int:
        """IS_NEW, IS_COMMITTED, IS_FORGOTTEN, or the log's number of the append that is on its way."""
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
        """The log has taken this one; it is settled with `number`."""
        self.pending[seq] = number
        self._in_flight.append((number, seq))
        self.highest = max(self.highest, seq)

    def join(self, ranges: Iterable[list[int]], written_ms: int) -> None:
        """These are committed as well, as its row says."""
        ranges = list(ranges)
        if ranges:
            self.highest = max(self.highest, ranges[-1][1])
            floor = self.highest - self.window
            self.ranges = _joined(self.ranges, ranges, floor)
            if self._committing:
                self._next_ranges = _joined(self._next_ranges, ranges, floor)
        self.written_ms = max(self.written_ms, written_ms)

    # -- the log's side: a group is committed or refused as a whole -----------------------------------------------

    def begin(self, upto: int) -> bytes:
        """The group up to this append is being written: the numbers as they will be after it, for its row."""
        self._take(upto)
        self._next_ranges = _with(self.ranges, self._committing, self.highest - self.window)
        return msgspec.msgpack.encode(self._next_ranges)

    def committed(self, now_ms: int) -> None:
        """The row is durable."""
        self.ranges = self._next_ranges
        self.written_ms = now_ms
        self._settle()

    def again(self) -> None:
        """Nothing was written, and it is tried in smaller groups."""
        pending = self.pending
        self._in_flight.extendleft((pending[seq], seq) for seq in reversed(self._committing))
        self._committing = []
        self._next_ranges = []

    def refused(self, upto: int) -> None:
        """Neither a row nor the messages up to this append were written: their numbers are free again."""
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


def _with(ranges: list[list[int]], numbers: Iterable[int], floor: int) -> list[list[int]]:
    """New ranges: these numbers added, and what is at or below `floor` left out."""
    merged = [list(one) for one in ranges]
    for seq in numbers:
        if merged and seq == merged[-1][1] + 1:
            merged[-1][1] = seq
        elif not merged or seq > merged[-1][1]:
            merged.append([seq, seq])
        else:
            _insert(merged, seq)
    while merged and merged[0][1] <= floor:
        del merged[0]
    if merged and merged[0][0] <= floor:
        merged[0][0] = floor + 1
    return merged


def _joined(ones: Iterable[list[int]], others: Iterable[list[int]], floor: int) -> list[list[int]]:
    """New ranges: what is in either, without what is at or below `floor`."""
    joined: list[list[int]] = []
    for first, last in sorted([*ones, *others]):
        if last <= floor:
            continue
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([max(first, floor + 1), last])
    return joined


def _insert(merged: list[list[int]], seq: int) -> None:
    """Add a number that others are beyond."""
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
    """The publishers of those who are connected, by identity; the others are in the log's database."""

    def __init__(self, database: Database, clock: Clock, *, window: int, lifetime_s: int) -> None:
        self._database = database
        self._clock = clock
        self._window = window
        self._lifetime_ms = lifetime_s * 1000
        self._live: dict[str, Publisher] = {}

    def __len__(self) -> int:
        return len(self._live)

    async def find(self, identity: str, token: bytes) -> Callable[[], Publisher]:
        """Read what is known of a publisher. The returned function makes it the identity's live one, without a checkpoint.

        Raises StorageUnavailable.
        """
        rows = (
            []
            if self._known(identity, token) and not self._database.shared
            else await self._database.read_small(lambda: programs.publisher_numbers(identity))
        )

        def claim() -> Publisher:
            oldest_ms = self._clock.now_ms() - self._lifetime_ms
            ranges, written_ms = [], 0
            for stored, numbers, stored_ms in rows:
                if stored == token and stored_ms >= oldest_ms:
                    ranges, written_ms = _RANGES.decode(numbers), stored_ms
            known = self._known(identity, token)
            if known is None:
                # Another connection's publisher may be live still; its appends are settled without it.
                known = self._live[identity] = Publisher(identity, token, self._window, ranges, written_ms)
            elif rows:
                known.join(ranges, written_ms)
            return known

        return claim

    def _known(self, identity: str, token: bytes) -> Publisher | None:
        known = self._live.get(identity)
        return known if known is not None and known.token == token else None

    def release(self, publisher: Publisher, holder: Receipts) -> None:
        """A connection is over. What is still on its way keeps the publisher in memory until it is settled."""
        if publisher.holder is holder:
            publisher.holder = None
        self.forget_if_idle(publisher)

    def forget_if_idle(self, publisher: Publisher) -> None:
        """Leave it to the database, if that knows everything."""
        if publisher.idle and self._live.get(publisher.identity) is publisher:
            age_ms = self._clock.now_ms() - publisher.written_ms
            if publisher.ranges and age_ms * TOUCH_SHARE > self._lifetime_ms:
                return  # the next sweep renews its row and lets it go
            del self._live[publisher.identity]

    async def sweep_forever(self) -> None:
        """Sweep often enough that no live row gets too old. Runs until cancelled; a failing engine only postpones it."""
        while True:
            await trio.sleep(max(self._lifetime_ms / 1000 / TOUCH_SHARE / 2, LEAST_SWEEP_S))
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.warning("sweep of publishers postponed", reason=str(error))

    async def sweep(self) -> int:
        """Renew the rows of those who are connected and delete what is too old; how many were deleted.

        Raises StorageUnavailable.
        """
        now_ms = self._clock.now_ms()
        live = [one for one in self._live.values() if one.ranges and not one.pending]
        old = [one for one in live if (now_ms - one.written_ms) * TOUCH_SHARE > self._lifetime_ms]
        keys = [(one.identity, one.token, now_ms) for one in old]
        deleted = await self._database.run(lambda: programs.sweep_publishers(keys, now_ms - self._lifetime_ms))
        for one in old:
            one.written_ms = max(one.written_ms, now_ms)
        for one in list(self._live.values()):
            self.forget_if_idle(one)
        return deleted
