"""Messages wake agents that are not running: who is written to while it is away is looked at, a moment later, and started if it can be.

    router ── note(identity) ──▶ waiting ──▶ one look for many: registered? connected anywhere? ──▶ Starts.wake

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

from aether_trio.model.clock import Clock
from aether_trio.model.containment import report
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.agents.registry import AgentStore
from aether_trio.services.agents.startup import Starts
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.batches import in_halves

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
class WakerStatistics:
    """Of this node. `woken` starts were made because of messages, since start; `given_up` agents ended again and again at the same message;
    `waiting` receivers are to be looked at.
    """

    woken: int
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


class Autostarter:
    """See the module docstring. `connected(identity)` says whether a participant is, on whichever node; `unread(identity)` gives the
    position up to which it has read its topic, and how many messages are behind it.
    """

    def __init__(
        self,
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
        self._ended: dict[str, float] = {}
        self._stuck: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._waiting = _Noted[int]()
        self._strangers = _Noted[tuple[int, float]]()
        """When something has come for whom nobody has registered, and until when (trio's clock) that counts."""
        self._looked: dict[str, float] = {}
        self._names: frozenset[str] = frozenset()
        self._names_until = -1.0
        self._news = trio.Event()
        self._woken = self._given_up = 0
        agents.on_change = self._renew

    def statistics(self) -> WakerStatistics:
        """What has happened so far."""
        return WakerStatistics(self._woken, self._given_up, len(self._waiting) + len(self._ended))

    def note(self, identity: str) -> None:
        """Somebody has written to this identity, and it is not connected to this node. Never blocks."""
        if identity not in self._waiting and self._waiting.offer(identity, self._clock.now_ms()):
            self._news.set()

    def ended(self, identity: str) -> None:
        """An agent that was started has lost or ended its connection to this node. Never blocks."""
        if len(self._ended) < MAX_WAITING:
            self._ended[identity] = trio.current_time() + QUIET_S
            self._news.set()

    def came_by_itself(self, identity: str) -> None:
        """Whoever has been connected without a start has seen what came for it. Never blocks."""
        self._strangers.pop(identity)

    def _renew(self) -> None:
        self._names_until = -1.0
        if self._strangers:
            self._news.set()

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            with trio.move_on_after(self._pause_s()):
                await self._news.wait()
            self._news = trio.Event()
            try:
                await self._look()
            except StorageUnavailable as error:
                logger.warning("nobody is woken while storage is away", reason=str(error))
                await trio.sleep(QUIET_S)

    def _pause_s(self) -> float:
        """Until something is to be looked at though nothing is new."""
        now = trio.current_time()
        moments = [self._looked.get(identity, now - QUIET_S) + QUIET_S for identity in self._waiting]
        moments += self._ended.values()
        if self._strangers:
            moments.append(self._names_until)
        return max(min(moments, default=now + 3600) - now, 0.0)

    async def _look(self) -> None:
        now = trio.current_time()
        for identity in [one for one, at in self._looked.items() if at + QUIET_S <= now]:
            del self._looked[identity]
        if (self._waiting or self._strangers or self._ended) and self._names_until <= now:
            await self._learn_names(now)
        for identity in [one for one, at in self._ended.items() if at <= now]:
            if self._is_registered(identity):
                await in_halves([identity], self._look_after, _given_up)
            if self._ended[identity] <= now:  # else it has come and ended again meanwhile
                del self._ended[identity]
        due = [one for one in self._waiting if one not in self._looked][:BATCH]
        wanted: dict[str, int] = {}
        for identity in due:
            trigger_ms = self._waiting.pop(identity)
            assert trigger_ms is not None
            if self._is_registered(identity):
                wanted[identity] = trigger_ms
            else:
                self._strangers.pop(identity)
                self._strangers.offer(identity, (trigger_ms, now + STRANGER_S))
        if wanted:
            try:
                await in_halves(list(wanted), lambda some: self._wake({one: wanted[one] for one in some}), _given_up)
            except BaseException:
                for identity, trigger_ms in wanted.items():
                    self._waiting.keep(identity, trigger_ms)
                raise

    async def _learn_names(self, now: float) -> None:
        """What is registered by now, and who of the strangers is none any more."""
        self._names_until = now + REFRESH_S  # before the look: what is registered during it, the next one finds
        try:
            self._names = await self._agents.names()
        except BaseException:
            self._names_until = -1.0
            raise
        for identity, (trigger_ms, until) in self._strangers.items():
            if self._is_registered(identity):
                self._waiting.keep(identity, trigger_ms)
            elif now < until:
                continue
            self._strangers.pop(identity)

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
        self._waiting.keep(identity, self._clock.now_ms())
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
                self._woken += 1
                logger.info(
                    "a message wakes its receiver", identity=identity.text, task=begun.task and begun.task.task_id
                )
            elif begun.missing:
                self._waiting.keep(identity.text, absent[identity])
        return ()


def _given_up(identity: str, error: Exception) -> None:
    """It would be met again, and keep all others waiting; the next message for it may wake it."""
    report(error, f"{identity}, which is not woken")
