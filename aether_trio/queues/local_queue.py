"""A work group of a gateway that is alone: the topic `tb::ws::impl`, each of whose messages goes to exactly one connected worker.

The group reads its topic's log once, as one consumer, and hands each message to the next worker in turn that has fewer
than `WINDOW` messages on their way to it. What a worker had not been sent when it left goes to the others, first. With
no worker connected messages wait in the log.

Invariants: an offset is in exactly one place: behind `position` (not read yet), in `_returned`, in flight with one
member, or done. The persisted cursor is the largest offset below which everything is done, so after a restart a message
may be handed out again (at-least-once), and never lost. A group whose last worker leaves something undone in front of
what is done stays in memory, so that without a restart nothing is handed out twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_log import TopicLog
from aether_trio.log.topic_state import TopicState
from aether_trio.model.containment import alone
from aether_trio.storage.base import Row, StorageUnavailable

logger = structlog.get_logger("aether.work")

WINDOW = 64
"""Messages on their way to one worker at most: enough to fill a pipe, few enough to share work evenly."""

CONSUMER = "*"
"""The group's name in the cursor table; no identity can be spelled so."""

RETRY_S = 0.5

MAX_IDLE_GROUPS = 10_000
"""Groups without a worker that are remembered for what was done out of order (some hundred bytes each)."""


@dataclass(frozen=True, slots=True)
class WorkStatistics:
    """`groups` have workers or something to write down; `idle` ones are only remembered. Where several nodes hand out work there are also,
    since start: `exchanges` with the database, messages `taken` from it and `returned` to it, `failed` exchanges."""

    groups: int
    idle: int
    workers: int
    exchanges: int = 0
    taken: int = 0
    returned: int = 0
    failed: int = 0


class Member:
    """One worker's place in its group."""

    __slots__ = ("group", "in_flight", "outbox")

    def __init__(self, group: LocalQueue, outbox: Outbox) -> None:
        self.group = group
        self.outbox = outbox
        self.in_flight: list[int] = []

    @property
    def has_room(self) -> bool:
        """Whether the worker may be given another message."""
        return len(self.in_flight) < WINDOW and self.outbox.wants_deliveries

    def delivered(self, offset: int) -> None:
        """See outbox.Origin: everything handed to this worker before `offset` (in hand-out order) is with it."""
        done = self.in_flight.index(offset) + 1 if offset in self.in_flight else 0
        del self.in_flight[:done]
        self.group.progressed()

    # -- see outbox.Origin ----------------------------------------------------------------------------------------

    shared = True
    position_done = 0

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self.group.state.name

    @property
    def is_open(self) -> bool:
        """Whether the worker may be given more."""
        return self in self.group.members

    def acknowledged(self, offset: int) -> None:
        """The worker is done with this message."""
        if offset in self.in_flight:
            self.in_flight.remove(offset)
            self.group.progressed()

    def leave(self) -> None:
        """The worker is gone."""
        self.group.leave(self)


class LocalQueue:
    """See the module docstring."""

    reads = True

    def __init__(
        self,
        log: TopicLog,
        state: TopicState,
        cursor: int,
        nursery: trio.Nursery,
        on_empty: Callable[[LocalQueue], None],
    ) -> None:
        self.state = state
        self._log = log
        self._nursery = nursery
        self._on_empty = on_empty
        self.position = cursor
        self._returned: list[int] = []
        self.members: list[Member] = []
        self._next = 0
        self._pumping = False
        self._room = trio.Event()

    @property
    def has_gaps(self) -> bool:
        """Whether the cursor alone would not say what is done, once nobody has anything in flight."""
        return bool(self._returned) and len(self._returned) <= self.position - self._returned[0]

    def join(self, outbox: Outbox) -> Member:
        """Add a worker; what waits goes to it at once."""
        if not self.members:
            self.state.subscribers[self] = None
        member = Member(self, outbox)
        self.members.append(member)
        outbox.listen(self._look_for_room)
        self._room.set()
        self._pump_if_behind()
        return member

    def leave(self, member: Member) -> None:
        """Remove a worker and hand what it was not sent to the others."""
        if member not in self.members:
            return
        self.members.remove(member)
        member.outbox.unlisten(self._look_for_room)
        for offset in member.in_flight:
            heapq.heappush(self._returned, offset)
        member.in_flight = []
        self._room.set()
        if not self.members:
            del self.state.subscribers[self]
            self._save_cursor()
            self._on_empty(self)
        else:
            self._pump_if_behind()

    def progressed(self) -> None:
        """A worker has been sent something."""
        self._save_cursor()
        self._look_for_room()
        self._pump_if_behind()

    def _look_for_room(self) -> None:
        self._room.set()

    def offer(self, offset: int, frame: bytes, touched: set[Outbox]) -> None:
        """See topic_state.Subscriber."""
        if self._pumping or self._returned or offset != self.position + 1:
            self._pump_if_behind()
            return
        member = self._hand_out(offset, frame)
        if member is not None:
            self.position = offset
            touched.add(member.outbox)
        else:
            self._pump_if_behind()

    def look(self) -> None:
        """See topic_state.Subscriber."""
        self._pump_if_behind()

    def renew(self) -> None:
        """See topic_state.Subscriber: without a position a group starts at the oldest message, so none is missed."""

    def _hand_out(self, offset: int, frame: bytes) -> Member | None:
        """Give the message to the next in turn who has room for it; None when nobody has."""
        members = self.members
        for step in range(len(members)):
            member = members[(self._next + step) % len(members)]
            if member.has_room and self._hand(member, offset, frame):
                self._next = (self._next + step + 1) % len(members)
                return member
        return None

    @staticmethod
    def _hand(member: Member, offset: int, frame: bytes) -> bool:
        member.in_flight.append(offset)
        if member.outbox.try_deliver(frame, member, offset):
            return True
        if offset in member.in_flight:
            member.in_flight.remove(offset)
        return False

    def _save_cursor(self) -> None:
        # In-flight lists are in hand-out order: a returned message may be older than what was handed out before it.
        open_offsets = [min(member.in_flight) for member in self.members if member.in_flight]
        open_offsets += self._returned[:1]
        done = min(open_offsets) - 1 if open_offsets else self.position
        self._log.cursors.advance(self.state, CONSUMER, done)

    # -- reading what could not be handed out live ----------------------------------------------------------------

    def _pump_if_behind(self) -> None:
        # `state.tail` is set before the offers of a message, so a message that was not handed out counts as behind.
        if not self._pumping and self.members and (self._returned or self.position < self.state.tail):
            self._pumping = True
            self._nursery.start_soon(alone, f"the workers of {self.state.name}", self._pump, name="work-group")

    async def _pump(self) -> None:
        try:
            while self.members and (self._returned or self.position < self.state.tail):
                try:
                    some_waits = not any(member.has_room for member in self.members) or not await self._hand_out_some()
                    if some_waits and self.members:
                        # Nobody can take the next one, small as its outbox may be: a large message needs an empty one.
                        self._room = trio.Event()
                        await self._room.wait()
                except StorageUnavailable as error:
                    logger.warning("work group read failed, trying again", reason=str(error))
                    await trio.sleep(RETRY_S)
        finally:
            self._pumping = False

    async def _hand_out_some(self) -> bool:
        """Read some and hand them out, first what was returned. False when one of them found nobody."""
        if self._returned:
            wanted = sorted(self._returned)[:WINDOW]
            rows: list[Row] = await self._log.read_at(self.state, wanted)
            still_there = {row[0] for row in rows}
            self._returned = [one for one in self._returned if one not in wanted or one in still_there]
            heapq.heapify(self._returned)
            for offset, frame in rows:
                member = self._hand_out(offset, frame)
                if member is None:
                    return False
                self._returned.remove(offset)
                heapq.heapify(self._returned)
                member.outbox.kick()
            return True
        tail = self.state.tail  # what the page can know of: more may be committed while it is read
        rows = await self._log.read(self.state, self.position, rows=WINDOW, max_bytes=128 * 1024)
        for offset, _, frame in rows:
            member = self._hand_out(offset, frame)
            if member is None:
                return False
            self.position = offset
            member.outbox.kick()
        if not rows:
            self.position = tail  # retention took the rest
        return True


class LocalGroups:
    """The work groups that have a worker connected, and those whose cursor alone would repeat work. See work_groups.WorkGroups."""

    def __init__(self, log: TopicLog, nursery: trio.Nursery) -> None:
        self._log = log
        self._nursery = nursery
        self._groups: dict[str, LocalQueue] = {}
        self._idle: dict[str, LocalQueue] = {}

    async def find(self, topic: str) -> tuple[TopicState, int]:
        """What `join` needs to know: the topic's state (pinned, see TopicLog.warm) and the group's cursor.

        Raises StorageUnavailable.
        """
        ((state, cursor),) = await self._log.warm([(topic, CONSUMER)])
        return state, cursor or 0

    def join(self, found: tuple[TopicState, int], outbox: Outbox, on_lost: Callable[[], None] | None = None) -> Member:
        """Make the owner of `outbox` a worker of the group. No checkpoint."""
        state = found[0]
        group = self._groups.get(state.name)
        if group is None and (group := self._idle.pop(state.name, None)) is not None:
            assert group.state is state, "an idle group pins its topic's state"
            self._groups[state.name] = group
            self._log.unpin([state])
        if group is None:
            unwritten = self._log.cursors.unwritten(state, CONSUMER)
            cursor = max(found[1], unwritten or 0)
            group = LocalQueue(self._log, state, cursor, self._nursery, self._forget)
            self._groups[state.name] = group
        return group.join(outbox)

    def statistics(self) -> WorkStatistics:
        """What there is now."""
        return WorkStatistics(
            len(self._groups), len(self._idle), sum(len(one.members) for one in self._groups.values())
        )

    def _forget(self, group: LocalQueue) -> None:
        state = group.state
        del self._groups[state.name]
        if group.has_gaps:
            state.waiting += 1
            self._idle[state.name] = group
            if len(self._idle) > MAX_IDLE_GROUPS:
                oldest = self._idle.pop(next(iter(self._idle)))
                self._log.unpin([oldest.state])
