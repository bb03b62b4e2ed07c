"""Messages wake agents that are not running: who is written to while it is away is looked at, a moment later, and started if it can be.

    router ── target_absent(identity) ──▶ AutostartQueue ──▶ one look for many: registered? connected anywhere? ──▶ Starts.wake

A note costs a dictionary entry, and an identity is looked at once a second at most, so a burst of messages to somebody who is away
costs the message path next to nothing. A note that comes while its identity was just looked at waits for the next look: what was
written before a look that finds the agent gone always leads to a start. An agent that has lost its connection and may come back is
looked at again, until it has or its start has ended.

An agent that was started and has ended, or whose node is gone, is looked at as well: if there are messages that it has not read, sent while it was dying perhaps, it
is started again for them. One that ends at the same message again and again is given up after MAX_RESTARTS starts; then the next message
may try.

What is registered is known from a look at the names, which is repeated when somebody registers something here and every few seconds while
there is a use for it: another node's registration counts within REFRESH_S. Whoever nobody has registered is remembered for STRANGER_S:
the orchestrator that will may be starting just now.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.containment import report
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.agents.registry import AgentStore
from aether_trio.services.agents.startup import Starts
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.bisection import in_halves

logger = structlog.get_logger("aether.agents")

V = TypeVar("V")

QUIET_S: Final = 1.0
REFRESH_S: Final = 5.0
STRANGER_S: Final = 60.0
BATCH: Final = 100
MAX_RESTARTS: Final = 3
"""Starts of an agent that ends each time before it has read a message; after 1, 2 and 4 seconds."""
MAX_WAITING: Final = 10_000
"""Identities; beyond it a message wakes nobody, and the next one may."""
SHARE: Final = 10
"""Those of one workspace may be the tenth part, so that one which writes to very many keeps no other from its agents."""


@dataclass(frozen=True, slots=True)
class AutostartStatistics:
    """What an Autostarter of one node has done since its start.

    `started` agents were started because of messages; `given_up` agents ended again and again at the
    same message; `waiting` receivers are still to be looked at.
    """

    started: int
    given_up: int
    waiting: int


class _Noted(Generic[V]):
    """Identities, with what is known of each, in their order; a workspace has a share of the room."""

    def __init__(self) -> None:
        self._values: dict[str, V] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, identity: str) -> bool:
        return identity in self._values

    def items(self) -> list[tuple[str, V]]:
        """All of them now."""
        return list(self._values.items())

    def offer(self, identity: str, value: V) -> bool:
        """Add an identity, if it is not there and there is room; whether it was added."""
        if identity in self._values or len(self._values) >= MAX_WAITING:
            return False
        if self._counts[_workspace_of(identity)] >= MAX_WAITING // SHARE:
            return False
        self.keep(identity, value)
        return True

    def keep(self, identity: str, value: V) -> None:
        """Add an identity that was here before, whatever room there is. One that is there stays as it is."""
        if identity not in self._values:
            self._values[identity] = value
            self._counts[_workspace_of(identity)] += 1

    def pop(self, identity: str) -> V | None:
        """Remove it; what was known of it."""
        if identity not in self._values:
            return None
        workspace = _workspace_of(identity)
        self._counts[workspace] -= 1
        if not self._counts[workspace]:
            del self._counts[workspace]
        return self._values.pop(identity)


def _workspace_of(identity: str) -> str:
    return identity.split("::", 2)[1]


class AutostartQueue:
    """Collects what an Autostarter is to look at, from parts that are made before it is.

    It is the AgentHooks of the task engine.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.waiting = _Noted[int]()
        """Receivers of messages that were not connected, and when (Unix ms) the first one came."""
        self.ended: dict[str, float] = {}
        """Started agents whose connection has ended, and when (trio's clock) to look at each."""
        self.unregistered = _Noted[tuple[int, float]]()
        """When a message came for an identity that is not registered, and until when (trio's clock) that counts."""
        self.registrations = 0
        """How often a registration was added or removed on this node."""
        self.changed = AutoResetEvent()

    def target_absent(self, identity: str) -> None:
        """Report a message or task for a participant that is not connected to this node. Never blocks."""
        if identity not in self.waiting and self.waiting.offer(identity, self._clock.now_ms()):
            self.changed.set()

    def agent_ended(self, identity: str) -> None:
        """Report that an agent that was started is no longer connected to this node. Never blocks."""
        if len(self.ended) < MAX_WAITING:
            self.ended[identity] = trio.current_time() + QUIET_S
            self.changed.set()

    def gateway_lost(self, identity: str) -> None:
        """Report that the node of an agent that was started is gone. Never blocks."""
        self.agent_ended(identity)

    def unstarted_ended(self, identity: str) -> None:
        """Report the end of an agent that was not started: it has seen its messages. Never blocks."""
        self.unregistered.pop(identity)

    def registration_changed(self) -> None:
        """Report that a registration was added or removed on this node. Never blocks."""
        self.registrations += 1
        if self.unregistered:
            self.changed.set()


class Autostarter:
    """See the module docstring. `connected(identity)` says whether a participant is, on whichever node; `unread(identity)` gives the
    position up to which it has read its topic, and how many messages are behind it.
    """

    def __init__(
        self,
        queue: AutostartQueue,
        starts: Starts,
        agents: AgentStore,
        clock: Clock,
        connected: Callable[[str], Awaitable[bool]],
        unread: Callable[[str], Awaitable[tuple[int, int]]],
    ) -> None:
        self._starts = starts
        self._agents = agents
        self._clock = clock
        self._connected = connected
        self._unread = unread
        self._queue = queue
        self._stuck: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._looked: dict[str, float] = {}
        self._names: frozenset[str] = frozenset()
        self._names_until = -1.0
        self._names_of = 0
        """`queue.registrations` when the names were read."""
        self._started = self._given_up = 0

    def statistics(self) -> AutostartStatistics:
        """What has happened so far."""
        return AutostartStatistics(self._started, self._given_up, len(self._queue.waiting) + len(self._queue.ended))

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            with trio.move_on_after(self._pause_s()):
                await self._queue.changed.wait()
            try:
                await self._look()
            except StorageUnavailable as error:
                logger.warning("nobody is woken while storage is away", reason=str(error))
                await trio.sleep(QUIET_S)

    def _pause_s(self) -> float:
        """Until something is to be looked at though nothing is new."""
        now = trio.current_time()
        moments = [self._looked.get(identity, now - QUIET_S) + QUIET_S for identity in self._queue.waiting]
        moments += self._queue.ended.values()
        if self._queue.unregistered:
            moments.append(self._names_age_out())
        return max(min(moments, default=now + 3600) - now, 0.0)

    async def _look(self) -> None:
        now = trio.current_time()
        for identity in [one for one, at in self._looked.items() if at + QUIET_S <= now]:
            del self._looked[identity]
        queue = self._queue
        if (queue.waiting or queue.unregistered or queue.ended) and self._names_age_out() <= now:
            await self._learn_names(now)
        for identity in [one for one, at in self._queue.ended.items() if at <= now]:
            if self._is_registered(identity):
                await in_halves([identity], self._look_after, _given_up)
            if self._queue.ended[identity] <= now:  # else it has come and ended again meanwhile
                del self._queue.ended[identity]
        due = [one for one in self._queue.waiting if one not in self._looked][:BATCH]
        wanted: dict[str, int] = {}
        for identity in due:
            trigger_ms = self._queue.waiting.pop(identity)
            assert trigger_ms is not None
            if self._is_registered(identity):
                wanted[identity] = trigger_ms
            else:
                self._queue.unregistered.pop(identity)
                self._queue.unregistered.offer(identity, (trigger_ms, now + STRANGER_S))
        if wanted:
            try:
                await in_halves(list(wanted), lambda some: self._wake({one: wanted[one] for one in some}), _given_up)
            except BaseException:
                for identity, trigger_ms in wanted.items():
                    self._queue.waiting.keep(identity, trigger_ms)
                raise

    def _names_age_out(self) -> float:
        """When the names are to be read again, on trio's clock."""
        return self._names_until if self._names_of == self._queue.registrations else -1.0

    async def _learn_names(self, now: float) -> None:
        """What is registered by now, and who of the strangers is none any more."""
        # Before the look: what is registered during it, the next one finds.
        self._names_until = now + REFRESH_S
        self._names_of = self._queue.registrations
        try:
            self._names = await self._agents.names()
        except BaseException:
            self._names_until = -1.0
            raise
        for identity, (trigger_ms, until) in self._queue.unregistered.items():
            if self._is_registered(identity):
                self._queue.waiting.keep(identity, trigger_ms)
            elif now < until:
                continue
            self._queue.unregistered.pop(identity)

    async def _look_after(self, ended: Sequence[str]) -> Sequence[None]:
        """Whether somebody who has ended has left messages behind."""
        (identity,) = ended
        position, count = await self._unread(identity)
        if not count or await self._connected(identity):
            self._stuck.pop(identity, None)
            return ()
        before, times = self._stuck.pop(identity, (position, 0))
        times = times + 1 if before == position else 1
        self._stuck[identity] = (position, times)
        if len(self._stuck) > MAX_WAITING:
            self._stuck.popitem(last=False)
        if times > MAX_RESTARTS:
            self._given_up += 1
            logger.warning("an agent ends again and again at the same message", identity=identity, message=position + 1)
            return ()
        self._queue.waiting.keep(identity, self._clock.now_ms())
        self._looked[identity] = trio.current_time() + (1 << times - 1) - 1 - QUIET_S
        return ()

    def _is_registered(self, identity: str) -> bool:
        implementation = identity.split("::", 3)[2]
        return implementation in self._names or implementation.rpartition(":")[0] in self._names

    async def _wake(self, wanted: Mapping[str, int]) -> Sequence[None]:
        absent: dict[Identity, int] = {}
        present = await self._starts.connected(list(wanted))
        for name, trigger_ms in wanted.items():
            self._looked[name] = trio.current_time()
            # The table of workers is a moment behind when somebody has just come.
            if name in present or await self._connected(name):
                continue
            try:
                absent[Identity.parse(name, strict=False)] = trigger_ms
            except IdentityError:
                continue
        if not absent:
            return ()
        for identity, begun in (await self._starts.wake(absent)).items():
            if begun.problem:
                logger.info("a message cannot wake its receiver", identity=identity.text, reason=begun.problem)
            elif begun.created:
                self._started += 1
                logger.info(
                    "a message wakes its receiver", identity=identity.text, task=begun.task and begun.task.task_id
                )
            elif begun.missing:
                self._queue.waiting.keep(identity.text, absent[identity])
        return ()


def _given_up(identity: str, error: Exception) -> None:
    """It would be met again, and keep all others waiting; the next message for it may wake it."""
    report(error, f"{identity}, which is not woken")
