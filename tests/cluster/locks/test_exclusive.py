"""One effective owner of an identity at most, with claimants on several nodes.

Every session writes with the epoch of its lock, through the fence. Whatever happened, the writes of
an identity in the order of their commits have epochs that never go back, and no epoch was given
twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest
import trio

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import GrantedLock, IdentityLock
from aether_trio.storage.base import StorageUnavailable
from tests.cluster.nodes import LONG_S, Host, Node, Nodes, SessionEnded, history_is_ordered
from tests.helpers.engines import PostgresEngine

NODES = 3
CLAIMANTS = 20
IDENTITIES = [f"ag::lab::x::{number}" for number in range(6)]


@dataclass(eq=False)
class Session:
    """A session that writes one thing after another, and nothing after its end."""

    node: Node
    lock: IdentityLock
    ended: bool = False
    writing: trio.Lock = field(default_factory=trio.Lock)

    async def write(self) -> None:
        async with self.writing:
            if self.ended:
                raise SessionEnded
            await self.node.write(self.lock.identity, self.lock.epoch)

    async def end(self) -> None:
        """No more writes, and the last one is settled."""
        self.ended = True
        async with self.writing:
            pass


class Sessions(Host):
    """The host of a node, with real ends."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, Session] = {}

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        for hold in lost:
            self._drop(hold)
        super().lease_back(lost, kept)

    def lease_gone(self) -> None:
        for session in list(self.sessions.values()):
            self._drop(session.lock)
        super().lease_gone()

    def _drop(self, hold: IdentityLock) -> None:
        session = self.sessions.get(hold.identity)
        if session is not None and session.lock == hold:
            session.ended = True
            del self.sessions[hold.identity]

    async def yields(self, hold: IdentityLock, resume_session_id: str) -> bool:
        session = self.sessions.get(hold.identity)
        if session is None or session.lock != hold or resume_session_id != hold.session_id:
            return False
        await self.close(session)
        return True

    async def close(self, session: Session) -> None:
        await session.end()
        if self.sessions.get(session.lock.identity) is session:
            del self.sessions[session.lock.identity]
        session.node.cluster.locks.release(session.lock)


@dataclass
class Run:
    nodes: Sequence[Node]
    chance: random.Random
    granted: list[GrantedLock] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    last_session: dict[str, str] = field(default_factory=dict)
    weather_is_over: bool = True

    async def claimant(self, rounds: int) -> None:
        """So many rounds, and as many more as the weather lasts."""
        while rounds > 0 or not self.weather_is_over:
            rounds -= 1
            node, identity = self.chance.choice(self.nodes), self.chance.choice(IDENTITIES)
            resume = self.last_session.get(identity, "") if self.chance.random() < 0.6 else ""
            try:
                session = await self.claim(node, identity, resume)
            except StatusError as error:
                self.outcomes[error.status.name] += 1
                await trio.sleep(self.chance.random() * 0.02)
                continue
            except StorageUnavailable as error:
                self.outcomes[type(error).__name__] += 1
                await trio.sleep(0.05)
                continue
            await self.live(session)

    async def claim(self, node: Node, identity: str, resume: str) -> Session:
        assert isinstance(node.host, Sessions)
        local = node.host.sessions.get(identity)
        if local is not None and local.lock.session_id == resume:
            await local.end()  # as the session layer does with a takeover on its own node
        try:
            claimed = await node.claim(identity, resume=resume)
        except BaseException:
            if local is not None and local.ended:
                await node.host.close(local)
            raise
        session = node.host.sessions[identity] = Session(node, claimed.lock)
        self.granted.append(claimed)
        self.last_session[identity] = claimed.lock.session_id
        self.outcomes["granted"] += 1
        return session

    async def live(self, session: Session) -> None:
        try:
            for _ in range(self.chance.randrange(1, 5)):
                await session.write()
                await trio.sleep(self.chance.random() * 0.01)
        except (SessionEnded, StorageUnavailable) as error:
            self.outcomes[type(error).__name__] += 1
        if self.chance.random() < 0.7:
            assert isinstance(session.node.host, Sessions)
            await session.node.host.close(session)

    def check(self, place: PostgresEngine) -> None:
        refused = {name for name in self.outcomes if name.isupper()}
        assert refused <= {Status.ALREADY_EXISTS.name, Status.UNAVAILABLE.name}
        epochs = history_is_ordered(place)
        given = [(one.lock.identity, one.lock.epoch) for one in self.granted]
        assert len(given) == len(set(given))
        assert all(set(seen) <= {epoch for who, epoch in given if who == identity} for identity, seen in epochs.items())
        assert set(epochs) == set(IDENTITIES)


async def start(nodes: Nodes) -> list[Node]:
    return [await nodes.start(host=Sessions()) for _ in range(NODES)]


@pytest.mark.parametrize("seed", range(3))
async def test_one_holder_at_a_time_when_all_is_well(nodes: Nodes, place: PostgresEngine, seed: int) -> None:
    run = Run(await start(nodes), random.Random(seed))
    async with trio.open_nursery() as nursery:
        for _ in range(CLAIMANTS):
            nursery.start_soon(run.claimant, 20)
    run.check(place)
    assert run.outcomes["granted"] > 50
    assert run.outcomes["FencedError"] == 0
    assert all(node.host.told == [] for node in run.nodes)


@pytest.mark.parametrize("seed", range(4))
async def test_one_holder_at_once_when_connections_end_at_random(
    nodes: Nodes, place: PostgresEngine, seed: int
) -> None:
    chance = random.Random(seed)
    run = Run(await start(nodes), random.Random(seed))
    sql = (
        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
        "WHERE application_name LIKE $1 AND datname = current_database() ORDER BY random() LIMIT 1) AS victim"
    )

    run.weather_is_over = False

    def losses() -> int:
        return sum(node.host.told.count("lost") for node in run.nodes)

    async def weather() -> None:
        while losses() < 8:
            await trio.sleep(chance.random() * 0.1)
            kind = chance.choice(["aether-lease", "aether-lease", "aether-listen", "aether-cluster", "aether-%"])
            await trio.to_thread.run_sync(place.rows, sql, kind)
        run.weather_is_over = True

    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(weather)
            for _ in range(CLAIMANTS):
                nursery.start_soon(run.claimant, 20)
    run.check(place)
    assert run.outcomes["granted"] > 50
