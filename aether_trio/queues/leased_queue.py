"""A work group as one of several nodes sees it: its workers here, and what this node has of the group's messages.

    the database          ──▶ hand ──▶ in flight with a worker ──▶ done     ──▶ the database
    (shared_work.py)           │               │                                 (shared_work.py)
                               └───────────────┴── worker gone ──▶ returned ──▶

The node takes a few messages for each worker that has little to do, and no more before some of them are done: what it does not have
others can take. A message that finds no room in an outbox, as it is large, stays in `hand` until a worker has some.

What a worker leaves undone goes back in the same statement that takes the next messages, where returned ones come first: so the other
workers of this node get it if they have room, without another way for that, and else any node's.

Frames of messages that were offered here (committed by this node) are kept for a moment, so that taking them is a matter of numbers and
moves no bytes. What other nodes commit is read by whoever takes it, in the statement that takes it.

Invariants: an offset that this node has is in exactly one of `hand`, a member's `in_flight`, `done`, `returned` or an order that was
not answered (`unanswered`); nothing is handed out before its commit is known; when the lease changes all of it is dropped
(`renounce`), as others may have it, and what is acknowledged afterwards moves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_state import TopicState
from aether_trio.queues.lease_programs import WorkRequest, WorkResponse

WINDOW: Final = 16
"""Messages on their way to one worker at most. Fewer than where one node has all workers (work_group.py): here they are what the idle
workers of other nodes cannot get."""

LOW: Final = WINDOW // 2
"""A worker with no more than that is brought more: a statement is for eight messages at least while there is enough to do."""

TAKE: Final = 256
"""Messages of a group in one statement at most."""

TAKE_BYTES: Final = 256 * 1024
"""A larger message comes alone."""

KNOWN_BYTES: Final = 64 * 1024
"""Of frames that were offered and are not taken yet, kept for one group."""


def nobody_is_told() -> None:
    """An `on_lost`."""


class QueueScheduler(Protocol):
    """Where a group says what it needs. Neither call blocks."""

    def urge(self, group: LeasedQueue) -> None:
        """It has something to give back, or to take; or perhaps to hand out."""
        ...

    def owe(self, group: LeasedQueue) -> None:
        """Something is done, which the database is to know in a moment."""
        ...


class Lease:
    """What one worker has under one lease; the Origin of its deliveries. A new lease is a new Lease, and what becomes of the old one is of
    no consequence."""

    __slots__ = ("_member", "in_flight")

    shared = True
    position_done = 0

    def __init__(self, member: SharedMember) -> None:
        self._member = member
        self.in_flight: list[int] = []

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._member.group.state.name

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return self._member.lot is self and self._member in self._member.group.members

    def delivered(self, offset: int) -> None:
        """See outbox.Origin: everything handed to this worker before `offset` (in hand-out order) is with it."""
        if offset in self.in_flight:
            count = self.in_flight.index(offset) + 1
            done = self.in_flight[:count]
            del self.in_flight[:count]
            self._member.group.finished(self._member, done)

    def acknowledged(self, offset: int) -> None:
        """The worker is done with this message."""
        if offset in self.in_flight:
            self.in_flight.remove(offset)
            self._member.group.finished(self._member, [offset])


class SharedMember:
    """One worker's place in its group. `on_lost` is called when others have been given what it has, or is done with and that was not
    written: its connection is to end."""

    __slots__ = ("group", "lot", "on_lost", "outbox")

    def __init__(self, group: LeasedQueue, outbox: Outbox, on_lost: Callable[[], None]) -> None:
        self.group = group
        self.outbox = outbox
        self.on_lost = on_lost
        self.lot = Lease(self)

    @property
    def has_room(self) -> bool:
        """Whether the worker may be given another message."""
        return len(self.lot.in_flight) < WINDOW and self.outbox.wants_deliveries

    def leave(self) -> None:
        """See work_groups.Worker."""
        self.group.leave(self)


class LeasedQueue:
    """See the module docstring. No checkpoints here: the desk waits."""

    reads = False

    def __init__(self, state: TopicState, desk: QueueScheduler) -> None:
        self.state = state
        self._desk = desk
        self.members: list[SharedMember] = []
        self._next = 0
        self.position = 0
        """The largest offset that was taken by any node, as far as this one has heard."""
        self.behind = False
        """There may be more to take."""
        self._hand: deque[tuple[int, bytes]] = deque()
        self._passed_over = 0
        self._blocked = False
        self._done: dict[int, SharedMember] = {}
        self._being_told: dict[int, SharedMember] = {}
        self._returned: list[int] = []
        self._known: dict[int, bytes] = {}
        self._known_bytes = 0
        self.unanswered: WorkRequest | None = None
        self.outstanding = 0
        """How many offsets this node has of the group in the database, by all that was answered."""
        self.due = False
        """What is done is to be told now, even if there is nothing else to tell."""
        self._compare = self._amend = False

    @property
    def forgettable(self) -> bool:
        """Whether the database knows all that this object knows."""
        return not (
            self.members
            or self._hand
            or self._done
            or self._returned
            or self.unanswered
            or self._compare
            or self._amend
        )

    # -- workers --------------------------------------------------------------------------------------------------

    def join(self, outbox: Outbox, on_lost: Callable[[], None]) -> SharedMember:
        """Add a worker; what waits goes to it as soon as it is taken."""
        if not self.members:
            self.state.subscribers[self] = None
        member = SharedMember(self, outbox, on_lost)
        self.members.append(member)
        outbox.listen(self._look_for_room)
        self.behind = True
        self._look_for_room()
        return member

    def leave(self, member: SharedMember) -> None:
        """Remove a worker and give back what it was not sent."""
        if member not in self.members:
            return
        self.members.remove(member)
        member.outbox.unlisten(self._look_for_room)
        member.on_lost = nobody_is_told  # which refers to its session
        self._returned += member.lot.in_flight
        member.lot.in_flight = []
        if self.members:
            self.behind = True
        else:
            del self.state.subscribers[self]
            self._return_hand()
            self.forget_frames()
        self._desk.urge(self)

    def finished(self, member: SharedMember, offsets: Sequence[int]) -> None:
        """A worker is done with these."""
        self._done.update(dict.fromkeys(offsets, member))
        self._desk.owe(self)
        self._look_for_room()

    def _look_for_room(self) -> None:
        self._blocked = False
        if self.behind or self._hand:
            self._desk.urge(self)

    # -- see topic_state.Subscriber -------------------------------------------------------------------------------

    def offer(self, offset: int, frame: bytes, touched: set[Outbox]) -> None:
        """See topic_state.Subscriber."""
        if offset <= self.position:
            return
        known = self._known
        follows = not known or offset == next(reversed(known)) + 1
        if follows and (not known or self._known_bytes + len(frame) <= KNOWN_BYTES):
            known[offset] = frame
            self._known_bytes += len(frame)
        self.behind = True
        self._desk.urge(self)

    def look(self) -> None:
        """See topic_state.Subscriber."""
        self.behind = True
        self._desk.urge(self)

    def renew(self) -> None:
        """See topic_state.Subscriber: without a position a group starts at the oldest message, so none is missed."""

    # -- handing out ----------------------------------------------------------------------------------------------

    def hand_out(self, touched: set[Outbox]) -> None:
        """Give what is in hand to the workers in turn, as far as they have room."""
        while self._hand:
            offset, frame = self._hand.popleft()
            member = self._hand_to_next(offset, frame)
            if member is None:
                self._hand.appendleft((offset, frame))
                return
            self._passed_over = 0
            touched.add(member.outbox)

    def _hand_to_next(self, offset: int, frame: bytes) -> SharedMember | None:
        members = self.members
        for step in range(len(members)):
            member = members[(self._next + step) % len(members)]
            if not member.has_room:
                continue
            lot = member.lot
            lot.in_flight.append(offset)
            if member.outbox.try_deliver(frame, lot, offset):
                self._next = (self._next + step + 1) % len(members)
                return member
            lot.in_flight.remove(offset)
        return None

    def pass_on(self) -> None:
        """Give back what nobody here has had room for since the last call: workers of another node may have some."""
        if not self._hand:
            self._passed_over = 0
        elif self._passed_over == self._hand[0][0]:
            self._return_hand()
            self._blocked = True  # not to take it again before there is more room
            self._desk.urge(self)
        else:
            self._passed_over = self._hand[0][0]

    def _return_hand(self) -> None:
        self._returned += [offset for offset, _ in self._hand]
        self._hand.clear()

    # -- the database ---------------------------------------------------------------------------------------------

    def order(self, number: int) -> WorkRequest | None:
        """What is to be told to the database and wanted from it now, under this number, or again what was not answered."""
        if self.unanswered is not None:
            return self.unanswered
        topic_id = self.state.topic_id
        if topic_id is None:
            return None
        want, max_bytes = self._wanted()
        due, self.due = self.due or not self.members, False
        if not (want or (due and self._done) or self._returned or self._compare or self._amend):
            return None
        done = sorted(self._done)
        self._being_told, self._done = self._done, {}
        if self._amend:
            order = WorkRequest(topic_id, number, done=done, returned=self._mine(), all_but=True)
        else:
            returned, self._returned = self._returned, []
            first, last = self._known_range(max_bytes)
            order = WorkRequest(topic_id, number, want, max_bytes, done, returned, known_from=first, known_upto=last)
            if want:
                self.behind = False
        self.unanswered = order
        return order

    def last_order(self, number: int) -> WorkRequest | None:
        """Everything goes back: this node ends."""
        if self.state.topic_id is None:
            return None
        done = [*self._done, *(self.unanswered.done if self.unanswered is not None else ())]
        if not done and not self.outstanding and self.unanswered is None:
            return None
        return WorkRequest(self.state.topic_id, number, done=sorted(done), all_but=True)

    def answered(self, share: WorkResponse) -> None:
        """The answer to what `order` returned last."""
        order, self.unanswered = self.unanswered, None
        assert order is not None
        self._compare = False
        self._being_told = {}
        self.position = share.position
        if not self.state.is_read:
            self.state.tail = max(self.state.tail, share.position)  # all of it is committed
        self.behind = self.behind or share.more
        if order.all_but:
            self._amend = False
            self.outstanding = share.held
        else:
            self.outstanding += len(share.messages) - len(order.done) - len(order.returned)
            # Something of ours that we do not know of: a statement that was given up has run after all.
            self._amend = self.outstanding != share.held
        for offset, frame in share.messages:
            known = self._known.get(offset) if frame is None else frame
            if known is None:
                self._returned.append(offset)
            else:
                self._hand.append((offset, known))
        self._forget_known()
        if self._done:
            self._desk.owe(self)
        if not self.members:
            self._return_hand()
        if self.behind or self._returned or self._amend or not self.members:
            self._desk.urge(self)

    def renounce(self) -> None:
        """The lease under which all this was taken has ended. Who has some of it is told at the end, and may leave then."""
        unwritten = {*self._done.values(), *self._being_told.values()}
        losers = [member for member in self.members if member in unwritten or member.lot.in_flight]
        self.unanswered = None
        self.outstanding = self.position = 0
        self.forget_frames()
        self._compare = self._amend = self._blocked = False
        self._hand.clear()
        self._done, self._being_told, self._returned = {}, {}, []
        for member in self.members:
            lot, member.lot = member.lot, Lease(member)
            member.outbox.withdraw((lot,))
            lot.in_flight = []
        self.behind = True
        self._desk.urge(self)
        for member in losers:
            member.on_lost()

    def compare(self, held: int) -> None:
        """The database says that this node has that many. It may be newer than what is known here, so this is only a reason to ask."""
        if held != self.outstanding and self.unanswered is None:
            self._compare = True
            self._desk.urge(self)

    def _mine(self) -> list[int]:
        mine = [offset for offset, _ in self._hand] + self._returned
        for member in self.members:
            mine += member.lot.in_flight
        return mine

    def _wanted(self) -> tuple[int, int]:
        """How many messages there is room for here, and how many bytes."""
        if not self.behind or self._hand or self._blocked:
            return 0, 0
        want = room = 0
        for member in self.members:
            in_flight = len(member.lot.in_flight)
            outbox = member.outbox
            if in_flight <= LOW and outbox.wants_deliveries:
                want += WINDOW - in_flight
                room += outbox.limits.delivery_bytes - outbox.delivery_bytes
        return min(want, TAKE), min(room, TAKE_BYTES)

    def _known_range(self, max_bytes: int) -> tuple[int, int]:
        """The first frames that are known, as offsets from and to, with no more bytes than that unless it is one."""
        if not self._known:
            return 1, 0
        first = last = next(iter(self._known))
        size = 0
        for offset, frame in self._known.items():
            size += len(frame)
            if size > max_bytes and offset != first:
                break
            last = offset
        return first, last

    def forget_frames(self) -> None:
        """Take everything from the database: after a failover an offset may be that of another message."""
        self._known.clear()
        self._known_bytes = 0

    def _forget_known(self) -> None:
        known = self._known
        while known and (first := next(iter(known))) <= self.position:
            self._known_bytes -= len(known.pop(first))
