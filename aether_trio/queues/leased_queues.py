"""Work groups where several nodes hand out work: what each node has stands in the database (storage/schema/work.py).

    groups (shared_groups.py) ── what they have done, want and give back ──▶ one statement at a time for many groups
                              ◀── what is theirs now, committed ───────────

One statement strikes out what is done, takes back what is returned and gives what is wanted, under the lock of each group's row. So a
busy group costs one commit for some dozen messages, and an idle one nothing. While a statement runs the next one gathers. What is done
and wants nothing else is written `LAZY_S` later.

The statement goes through a queue of its own (`Database.beside`): it locks rows of groups, and a commit of the log rows of topics; in one
transaction with each other they would come in one order here and in the other on another node.

Why not in memory, told by the nodes to each other: a message that two nodes could hand out is decided by a lock somewhere, and the database
has one that ends with its holder. Why not a row for each message that somebody has: see storage/schema/work.py.

Faults
* A node dies: what it had counts as returned as soon as its lease has ended, and is found by the next take, or by the look of nodes that
  have workers to spare, at once when they hear of the death, or within `LOOK_S`. Done and not yet written means done again.
* This node's lease ends: the fence refuses the statement. A new lease means to renounce everything that was taken under the old one, as
  others may have been given it; the connections of workers that have some of it end.
* The process is stopped, and goes on when others have its work: it makes sure of its lease before it hands anything out.
* The answer to a statement is lost: it is sent again as it was, and does nothing twice. One that was given up and runs all the same, later,
  shows by the number of offsets that the database says this node has.
* The node ends: everything is given back, in a statement that is shielded from the cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.outbox import Outbox
from aether_trio.log import shared_programs
from aether_trio.log.topic_log import TopicLog
from aether_trio.log.topic_state import TopicState
from aether_trio.model.containment import report
from aether_trio.queues.lease_programs import Lease, WorkRequest, exchange, look, shares
from aether_trio.queues.leased_queue import LeasedQueue, SharedMember, nobody_is_told
from aether_trio.queues.local_queue import CONSUMER, WorkStatistics
from aether_trio.storage.base import CommitUnknown, StorageUnavailable

logger = structlog.get_logger("aether.work")

LAZY_S: Final = 0.25
"""How long what is done may wait for its commit: as long as any position (log.offset_flush_s)."""

LOOK_S: Final = 5.0
"""Between two looks for what no hint has told: work of nodes that have died, lost wakes."""

RETRY_S: Final = 0.5
UNSURE_S: Final = 0.1
"""After an answer was lost: somebody may have what others wait for."""

END_S: Final = 3.0
"""For giving back, at the end."""

GROUPS_AT_ONCE: Final = 64
GROUPS_PER_LOOK: Final = 500

NO_LEASE: Final = (-1, -1)


class LeasedQueues:
    """See the module docstring, and work_groups.WorkGroups."""

    def __init__(self, log: TopicLog, nursery: trio.Nursery) -> None:
        self._log = log
        self._database = log.database.beside()
        self._nursery = nursery
        self._running = False
        self._groups: dict[str, LeasedQueue] = {}
        self._urgent: dict[LeasedQueue, None] = {}
        self._owing: dict[LeasedQueue, None] = {}
        self._owed_at = math.inf
        self._failing: dict[LeasedQueue, float] = {}
        """Groups that a mistake of ours was met with, and when each is served again."""
        self._wake = trio.Event()
        self._departed = trio.Event()
        log.departures.append(self._note_departure)
        self._lease: Lease = NO_LEASE
        self._epoch_alone = 0
        self._requests = 0
        self._troubled = False
        self._exchanges = self._taken = self._returned = self._failed = 0

    async def find(self, topic: str) -> tuple[TopicState, int]:
        """See WorkGroups."""
        ((state, cursor),) = await self._log.warm([(topic, CONSUMER)])
        return state, cursor or 0

    def join(
        self, found: tuple[TopicState, int], outbox: Outbox, on_lost: Callable[[], None] = nobody_is_told
    ) -> SharedMember:
        """See WorkGroups."""
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run, name="work-groups")
        state = found[0]
        group = self._groups.get(state.name)
        if group is None:
            state.waiting += 1  # until the group is forgotten
            group = self._groups[state.name] = LeasedQueue(state, self)
        return group.join(outbox, on_lost)

    def statistics(self) -> WorkStatistics:
        """See WorkGroups."""
        with_workers = [group for group in self._groups.values() if group.members]
        return WorkStatistics(
            len(self._groups),
            len(self._groups) - len(with_workers),
            sum(len(group.members) for group in with_workers),
            self._exchanges,
            self._taken,
            self._returned,
            self._failed,
        )

    # -- see shared_groups.Desk -----------------------------------------------------------------------------------

    def urge(self, group: LeasedQueue) -> None:
        """See Desk."""
        if not self._urgent:
            self._wake.set()
        self._urgent[group] = None

    def owe(self, group: LeasedQueue) -> None:
        """See Desk."""
        if not self._owing:
            self._owed_at = trio.current_time() + LAZY_S
            self._wake.set()
        self._owing[group] = None

    # -- the task -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "work-groups-look", self._look_on, name="work-groups-look")
                while True:
                    await self._wait_for_work()
                    await self._serve_all(self._next_groups())
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(END_S):
                await self._give_all_back()

    async def _wait_for_work(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._urgent and trio.current_time() < (next_at := self._next_at()):
            self._wake = trio.Event()
            with trio.move_on_at(next_at):
                await self._wake.wait()

    def _next_at(self) -> float:
        """When the next pause ends: of a group that owes or of one that has failed."""
        return min(self._owed_at, *self._failing.values()) if self._failing else self._owed_at

    def _next_groups(self) -> list[LeasedQueue]:
        if trio.current_time() >= self._owed_at:
            self._owed_at = math.inf
            for group in self._owing:
                group.due = True
                self._urgent[group] = None
            self._owing.clear()
        self._put_off_failing()
        groups = list(self._urgent)[:GROUPS_AT_ONCE]
        for group in groups:
            del self._urgent[group]
        return groups

    def _put_off_failing(self) -> None:
        """Whatever asks for it meanwhile, a group that has failed is served when its pause is over."""
        for group, again_at in list(self._failing.items()):
            if trio.current_time() < again_at:
                self._urgent.pop(group, None)
            else:
                del self._failing[group]
                self._urgent[group] = None

    async def _serve_all(self, groups: Sequence[LeasedQueue]) -> None:
        """A mistake of ours with one group costs none of the others: neither their work nor a pause."""
        try:
            await self._serve(groups)
        except Exception as error:
            if len(groups) > 1:
                for group in groups:
                    await self._serve_all([group])
                return
            (group,) = groups
            report(error, f"work of {group.state.name}")
            self._failed += 1
            self._failing[group] = trio.current_time() + RETRY_S

    async def _serve(self, groups: Sequence[LeasedQueue]) -> None:
        touched: set[Outbox] = set()
        orders: dict[LeasedQueue, WorkRequest] = {}
        try:
            await self._current_lease()
            for group in groups:
                group.hand_out(touched)
            await self._kick(touched)
            lease = await self._current_lease()
        except StorageUnavailable as error:
            await self._fail(groups, error)
            return
        for group in groups:
            order = group.order(self._requests + 1)
            if order is not None:
                self._requests = max(self._requests, order.request)
                orders[group] = order
                self._owing.pop(group, None)
        if orders:
            await self._exchange(lease, orders)
        for group in groups:
            if group.forgettable:
                self._forget(group)

    async def _exchange(self, lease: Lease, orders: dict[LeasedQueue, WorkRequest]) -> None:
        now_ms = self._log.clock.now_ms()
        try:
            rows = await self._database.write(exchange(lease, now_ms, list(orders.values())))
            current = await self._current_lease()
        except StorageUnavailable as error:
            await self._fail(list(orders), error)
            return
        self._exchanges += 1
        if current != lease:
            return  # everything was renounced just now, this too
        found = shares(rows)
        touched: set[Outbox] = set()
        for_others: list[TopicState] = []
        for group, order in orders.items():
            share = found[order.topic_id]
            self._taken += len(share.messages)
            self._returned += len(order.returned) if not order.all_but else 0
            group.answered(share)
            group.hand_out(touched)
            if share.more and (order.returned or order.all_but):
                for_others.append(group.state)
        if for_others and self._log.relay is not None:
            self._log.relay.committed(for_others)
        await self._kick(touched)

    async def _current_lease(self) -> Lease:
        """Whose name work is taken in now; what was taken in another one is renounced. Raises StorageUnavailable.

        No checkpoint behind the look at the lease: what is handed out then is this node's, however long the process was stopped before.
        """
        await self._log.sure()
        node_id, epoch = self._log.node()
        if node_id == 0:
            if not self._epoch_alone:
                # Alone, and a process of its own: the last one's work is free. These numbers only grow.
                statement = shared_programs.new_writer(self._log.clock.now_ms())
                [[self._epoch_alone]] = await self._database.write(statement)
            epoch = self._epoch_alone
        lease = (node_id, epoch)
        if lease != self._lease:
            if self._lease != NO_LEASE:
                logger.warning("work that was taken under an older lease is renounced", groups=len(self._groups))
                for group in self._groups.values():
                    group.renounce()
            self._lease = lease
        return lease

    async def _fail(self, groups: Sequence[LeasedQueue], error: Exception) -> None:
        if not self._troubled:
            logger.warning("work not handed out, trying again", reason=str(error))
        self._troubled = True
        self._failed += 1
        await trio.sleep(UNSURE_S if isinstance(error, CommitUnknown) else RETRY_S)
        for group in self._groups.values():
            group.forget_frames()
        for group in groups:
            self.urge(group)

    def _forget(self, group: LeasedQueue) -> None:
        if self._groups.get(group.state.name) is group:
            del self._groups[group.state.name]
            self._urgent.pop(group, None)
            self._owing.pop(group, None)
            self._failing.pop(group, None)
            group.state.waiting -= 1

    @staticmethod
    async def _kick(touched: set[Outbox]) -> None:
        kicks = 0
        while touched:
            touched.pop().kick()
            kicks += 1
            if kicks % 64 == 0:
                await trio.lowlevel.checkpoint()

    # -- now and then ---------------------------------------------------------------------------------------------

    def _note_departure(self) -> None:
        self._departed.set()

    async def _look_on(self) -> None:
        while True:
            with trio.move_on_after(LOOK_S):
                await self._departed.wait()
            departed, self._departed = self._departed.is_set(), trio.Event()
            # Nobody else hands out work, or dies, where there is one node; only a statement that was given up can surprise.
            if self._log.node()[0] > 0 or self._troubled:
                self._troubled = False
                try:
                    lease = await self._current_lease()
                    await self._look_around(lease)
                    if lease[0] > 0 and not departed:  # else the last look may have been just now
                        for group in self._groups.values():
                            group.pass_on()
                except StorageUnavailable as error:
                    logger.info("work that waits was not looked for", reason=str(error))

    async def _look_around(self, lease: Lease) -> None:
        known: dict[int, LeasedQueue] = {}
        for group in self._groups.values():
            if group.state.topic_id is not None:
                known[group.state.topic_id] = group
        topic_ids = list(known)
        for start in range(0, len(topic_ids), GROUPS_PER_LOOK):
            part = topic_ids[start : start + GROUPS_PER_LOOK]
            found = await self._database.read(lambda part=part: look(lease, part))  # type: ignore[misc]
            if lease != self._lease:
                return
            for topic_id, (waits, held) in found.items():
                group = known[topic_id]
                if waits and group.members:
                    group.look()
                group.compare(held)

    async def _give_all_back(self) -> None:
        lease = self._lease
        orders: dict[int, tuple[WorkRequest, TopicState]] = {}
        for group in self._groups.values():
            self._requests += 1
            order = group.last_order(self._requests)
            if order is not None:
                orders[order.topic_id] = (order, group.state)
        pending = list(orders.values())
        while pending:
            part = pending[:GROUPS_AT_ONCE]
            try:
                now_ms = self._log.clock.now_ms()
                rows = await self._database.write(exchange(lease, now_ms, [order for order, _ in part]))
            except StorageUnavailable as error:
                logger.info("work is not given back yet", reason=str(error))
                await trio.sleep(UNSURE_S)
                continue
            del pending[: len(part)]
            if self._log.relay is not None:
                more = {topic_id for topic_id, share in shares(rows).items() if share.more}
                self._log.relay.committed([state for order, state in part if order.topic_id in more])
