"""Starts registered agents for which messages wait.

    router ── target_absent(identity) ──▶ AutostartQueue ──▶ a check of many ──▶ start_all
                                                             (registered? connected to any node?)

Such a call costs the message path a dictionary entry, and an identity is checked once a second at
most. A call that comes just after a check waits for the next: a message that was sent before a
check that finds the agent absent always leads to a start. An agent that lost its connection is
checked again, until it has come back or its start has ended.

An agent that was started and has ended, or whose node has died, is started again if its topic has
messages that it has not read. If it ends at the same message again and again, it is given up after
MAX_RESTARTS starts, until the next message.

The registered implementations are read when one is registered on this node, and every REFRESH_S
while identities wait: so a registration on another node counts within REFRESH_S.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.containment import report
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.agents.crash_loops import CrashLoops
from aether_trio.services.agents.registry import AgentRegistry
from aether_trio.services.agents.startup import AgentStarter
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.bisection import in_halves

logger = structlog.get_logger("aether.agents")

V = TypeVar("V")

CHECK_PAUSE_S: Final = 1.0  # seconds between two checks of one identity, and after its end
REFRESH_S: Final = 5.0  # seconds between two looks at the registered implementations
UNREGISTERED_S: Final = 60.0  # seconds for which a message can start an agent registered later
AT_ONCE: Final = 20  # crashed or ended agents that are looked at at the same time
BATCH: Final = 100  # identities in one check at most
MAX_RESTARTS: Final = 3  # starts after 1, 2 and 4 s of an agent that reads no message
MAX_WAITING: Final = 10_000
"""Identities to check; beyond it a message starts no agent."""
SHARE: Final = 10  # a workspace gets a tenth of MAX_WAITING


@dataclass(frozen=True, slots=True)
class AutostartStatistics:
    """Counts the agent starts that messages caused on this node."""

    started: int
    given_up: int  # agents that ended again and again at the same message
    waiting: int  # identities to be checked


class _FairMap(Generic[V]):
    """Maps identities to values in order of arrival; bounds each workspace's share."""

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
        """Return a copy of all entries of the map."""
        return list(self._values.items())

    def offer(self, identity: str, value: V) -> bool:
        """Add a new identity if its workspace has room; return whether it was added."""
        if identity in self._values or len(self._values) >= MAX_WAITING:
            return False
        if self._counts[_workspace_of(identity)] >= MAX_WAITING // SHARE:
            return False
        self.keep(identity, value)
        return True

    def keep(self, identity: str, value: V) -> None:
        """Add an identity with or without room for it; a present value stays."""
        if identity not in self._values:
            self._values[identity] = value
            self._counts[_workspace_of(identity)] += 1

    def pop(self, identity: str) -> V | None:
        """Remove an identity from the map, and return its value."""
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
    """Collects identities for an Autostarter; the AgentHooks of tasks. Never blocks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.waiting = _FairMap[int]()
        """Identities to check, and when the first message for each was sent (Unix ms)."""
        self.ended: dict[str, float] = {}  # ended agents, and when to check each (trio's clock)
        self.crashed: dict[str, None] = {}  # agents whose processes have failed
        self.unregistered = _FairMap[tuple[int, float]]()
        """Unregistered identities: when the message was sent, and until when it counts."""
        self.registrations = 0  # how many times a registration was written or deleted on this node
        self.changed = AutoResetEvent()

    def target_absent(self, identity: str) -> None:
        """Report that a message or task waits for a participant absent from this node."""
        if identity not in self.waiting and self.waiting.offer(identity, self._clock.now_ms()):
            self.changed.set()

    def agent_ended(self, identity: str) -> None:
        """Report that a started agent is no longer connected to this node."""
        if len(self.ended) < MAX_WAITING:
            self.ended[identity] = trio.current_time() + CHECK_PAUSE_S
            self.changed.set()

    def agent_crashed(self, identity: str) -> None:
        """Report that the process of a started agent has failed."""
        if len(self.crashed) < MAX_WAITING:
            self.crashed[identity] = None
            self.changed.set()

    def gateway_lost(self, identity: str) -> None:
        """Report that the node of a started agent has died."""
        self.agent_ended(identity)

    def unstarted_ended(self, identity: str) -> None:
        """Start no agent for a participant that was not started, has connected and left."""
        self.unregistered.pop(identity)

    def registration_changed(self) -> None:
        """Report that a registration was written or deleted on this node."""
        self.registrations += 1
        if self.unregistered:
            self.changed.set()


class Autostarter:
    """Starts registered agents for which messages wait.

    `connected(identity)` says whether a participant is connected to any node. `unread(identity)`
    returns the position up to which it has read its topic, and how many messages are behind that.
    """

    def __init__(
        self,
        queue: AutostartQueue,
        starter: AgentStarter,
        agents: AgentRegistry,
        clock: Clock,
        connected: Callable[[str], Awaitable[bool]],
        unread: Callable[[str], Awaitable[tuple[int, int]]],
        crashes: CrashLoops,
    ) -> None:
        self._crashes = crashes
        self._queue = queue
        self._starter = starter
        self._agents = agents
        self._clock = clock
        self._connected = connected
        self._unread = unread
        self._restarts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Agents that ended with unread messages: the position, and how many times there."""
        self._checked: dict[str, float] = {}  # when each was checked last (trio's clock)
        self._names: frozenset[str] = frozenset()
        self._names_until = -1.0
        self._names_of = 0  # `queue.registrations` when the names were read
        self._started = self._given_up = 0

    def statistics(self) -> AutostartStatistics:
        """Return the counts of agents started, given up and waiting to be checked."""
        return AutostartStatistics(self._started, self._given_up, len(self._queue.waiting) + len(self._queue.ended))

    async def run(self) -> None:
        """Check absent identities, and start their agents, until cancelled."""
        while True:
            with trio.move_on_after(self._pause_s()):
                await self._queue.changed.wait()
            try:
                await self._check()
            except StorageUnavailable as error:
                logger.warning("storage is unavailable; messages start no agents until it answers", reason=str(error))
                await trio.sleep(CHECK_PAUSE_S)

    def _pause_s(self) -> float:
        """Return the seconds until the next identity is due for a check."""
        now = trio.current_time()
        moments = [self._checked.get(identity, now - CHECK_PAUSE_S) + CHECK_PAUSE_S for identity in self._queue.waiting]
        moments += self._queue.ended.values()
        if self._queue.unregistered:
            moments.append(self._names_due())
        return max(min(moments, default=now + 3600) - now, 0.0)

    async def _check(self) -> None:
        now = trio.current_time()
        for identity in [one for one, at in self._checked.items() if at + CHECK_PAUSE_S <= now]:
            del self._checked[identity]
        queue = self._queue
        crashed = list(queue.crashed)[:AT_ONCE]
        await self._each(crashed, self._handle_new_crash)
        for identity in crashed:
            del queue.crashed[identity]
        if (queue.waiting or queue.unregistered or queue.ended) and self._names_due() <= now:
            await self._read_names(now)
        ended = [one for one, at in queue.ended.items() if at <= now][:AT_ONCE]
        await self._each([one for one in ended if self._is_registered(one)], self._check_unread)
        for identity in ended:
            if queue.ended[identity] <= now:  # else the agent has ended again meanwhile
                del queue.ended[identity]
        if queue.crashed:
            queue.changed.set()  # after a look at those that wait for a start
        due = [one for one in queue.waiting if one not in self._checked][:BATCH]
        wanted: dict[str, int] = {}
        for identity in due:
            trigger_ms = queue.waiting.pop(identity)
            assert trigger_ms is not None
            if self._is_registered(identity):
                wanted[identity] = trigger_ms
            else:
                queue.unregistered.pop(identity)
                queue.unregistered.offer(identity, (trigger_ms, now + UNREGISTERED_S))
        if wanted:
            try:
                await in_halves(list(wanted), partial(self._start, wanted), _report_defect)
            except BaseException:
                for identity, trigger_ms in wanted.items():
                    queue.waiting.keep(identity, trigger_ms)
                raise

    def _names_due(self) -> float:
        """Return when the registered names are to be read again (trio's clock)."""
        return self._names_until if self._names_of == self._queue.registrations else -1.0

    async def _read_names(self, now: float) -> None:
        """Read the registered agent names; move newly registered identities to `waiting`."""
        # Set before the read: the next read finds what is registered during this one.
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

    async def _each(self, identities: Sequence[str], check: Callable[[str], Awaitable[object]]) -> None:
        """Check these at the same time; a defect of one is reported, and costs no other."""
        unavailable: list[StorageUnavailable] = []

        async def work(one: Sequence[str]) -> Sequence[None]:
            await check(one[0])
            return ()

        async def one(identity: str) -> None:
            try:
                await in_halves([identity], work, _report_defect)
            except StorageUnavailable as error:
                unavailable.append(error)

        async with trio.open_nursery() as nursery:
            for identity in identities:
                nursery.start_soon(one, identity)
        if unavailable:
            raise unavailable[0]

    async def _handle_new_crash(self, identity: str) -> None:
        if await self._connected(identity):  # it has come back by other means, or is leaving
            self._queue.ended.setdefault(identity, trio.current_time() + CHECK_PAUSE_S)
        else:
            await self._crashes.handle(identity)

    async def _check_unread(self, identity: str) -> None:
        """Let an agent that has ended wait for a start if it has unread messages."""
        position, count = await self._unread(identity)
        crashed = False
        if count and not await self._connected(identity) and (crashed := await self._crashes.handle(identity)):
            position, count = await self._unread(identity)  # it may have moved
        if not count or await self._connected(identity):
            self._restarts.pop(identity, None)
            return
        before, times = self._restarts.pop(identity, (position, 0))
        times = times + 1 if before == position else 1
        self._restarts[identity] = (position, times)
        if len(self._restarts) > MAX_WAITING:
            self._restarts.popitem(last=False)
        if times > MAX_RESTARTS and not crashed:
            self._given_up += 1
            logger.warning(
                "an agent ends again and again at the same message; it is not started until the next message",
                identity=identity,
                message=position + 1,
            )
            return
        self._queue.waiting.keep(identity, self._clock.now_ms())
        self._checked[identity] = trio.current_time() + (1 << min(times, MAX_RESTARTS + 1) - 1) - 1 - CHECK_PAUSE_S

    def _is_registered(self, identity: str) -> bool:
        implementation = identity.split("::", 3)[2]
        return implementation in self._names or implementation.rpartition(":")[0] in self._names

    async def _start(self, triggers: Mapping[str, int], names: Sequence[str]) -> Sequence[None]:
        absent: dict[Identity, int] = {}
        present = await self._starter.connected(names)
        crashed = sorted(await self._crashes.unhandled([one for one in names if one not in present]))
        for start in range(0, len(crashed), AT_ONCE):
            await self._each(crashed[start : start + AT_ONCE], self._crashes.handle)
        for name in names:
            self._checked[name] = trio.current_time()
            # The table of workers is a moment behind when a participant has just connected.
            if name in present or await self._connected(name):
                continue
            try:
                absent[Identity.parse(name, strict=False)] = triggers[name]
            except IdentityError:
                continue
        if not absent:
            return ()
        for identity, begun in (await self._starter.start_all(absent, count_crashes=self._crashes.enabled)).items():
            if begun.problem:
                logger.info("a message cannot start its receiver", identity=identity.text, reason=begun.problem)
            elif begun.created:
                self._started += 1
                task_id = begun.task and begun.task.task_id
                if begun.waits:
                    logger.warning(
                        "an agent for which a message waits cannot be started yet",
                        identity=identity.text,
                        task=task_id,
                        reason=begun.waits,
                    )
                else:
                    text = "an agent is started, as a message or a task waits for it"
                    logger.info(text, identity=identity.text, task=task_id)
            elif begun.missing or begun.crashed:
                self._queue.waiting.keep(identity.text, absent[identity])
        return ()


def _report_defect(identity: str, error: Exception) -> None:
    """Report why the start of an agent failed; its message causes no other start."""
    report(error, f"the start of {identity} for a message")
