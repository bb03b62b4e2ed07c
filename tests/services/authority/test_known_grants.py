"""Grants in memory: never older than what was applied, bounded, forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    Audience,
    AuthorityGrant,
    GrantScope,
    GrantTerms,
    PrincipalKey,
    derive,
    new_root,
)
from aether_trio.model.errors import RequestError
from aether_trio.model.identity import Identity
from aether_trio.services.access import GatewayActor, GrantMissing
from aether_trio.services.authority import store
from aether_trio.services.authority.known_grants import RECHECK_MS, RECHECK_S, KnownGrants
from aether_trio.session.directory import LocalDirectory
from aether_trio.session.registry import SessionRegistry
from aether_trio.storage.base import Database, Program, ProgramFactory
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import Engine

ANN = PrincipalKey("user", "ann")
PLANNER = Identity.agent("prod", "planner", "1")
OTHER = Identity.agent("prod", "other", "1")
HOUR = 3_600_000


def grants_of(now_ms: int, audience: Audience | None = None) -> tuple[AuthorityGrant, AuthorityGrant]:
    """A root grant, and one below it for the planner."""
    me = PrincipalKey.of(PLANNER)
    scope = GrantScope(AccessLevel.READ, ("prod",))
    terms = GrantTerms(scope, Audience(*me), now_ms + HOUR, now_ms + 2 * HOUR, 1)
    root = new_root("root", subject=ANN, delegate=ANN, issued_by=ANN, terms=terms, now_ms=now_ms)
    narrower = replace(terms, hops=0, audience=audience or Audience(*me), while_active=audience is not None)
    return root, derive((root,), "child", delegate=me, issued_by=ANN, terms=narrower, now_ms=now_ms)


class Changes:
    """What applies the changes of all nodes; here the test does."""

    def when_applied(self, kind: str, listener: Callable[[Any, bool], None]) -> None:
        self.apply = listener


class Held:
    """A database whose reads wait for the test, behind what they have read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.read_done, self.go_on = trio.Event(), trio.Event()
        self.reads = 0

    async def read_small(self, program: ProgramFactory[Any]) -> Any:
        self.reads += 1
        found = await self._database.read_small(program)
        self.read_done.set()
        await self.go_on.wait()
        return found


class Directory(LocalDirectory):
    """Sessions of other nodes that are alive."""

    alive: frozenset[str] = frozenset()
    looks = 0

    async def find(self, session_id: str) -> Any:
        self.looks += 1
        return object() if session_id in self.alive else None


@pytest.fixture
async def tasks(engine: Engine) -> AsyncIterator[Database]:
    async with engine.open("tasks") as opened:
        yield opened


@pytest.fixture
def directory() -> Directory:
    return Directory(SessionRegistry())


def known(tasks: Any, clock: ManualClock, directory: Directory, capacity: int = 100) -> tuple[KnownGrants, Changes]:
    made, changes = KnownGrants(tasks, clock, SessionRegistry(), directory, capacity=capacity), Changes()
    made.follow(changes)  # type: ignore[arg-type]
    return made, changes


async def write(tasks: Database, *grants: AuthorityGrant) -> None:
    def program() -> Program[None]:
        for place, grant in enumerate(grants):
            yield from store.insert_grant(grant, grants[:place])

    await tasks.run(program)


def context(grant_id: str = "child", user_id: str = "ann") -> pb.AuthorizationContext:
    subject = pb.PrincipalRef(principal_type="user", principal_id=user_id)
    return pb.AuthorizationContext(authority_mode="on_behalf_of", subject=subject, grant_id=grant_id)


async def test_a_grant_is_missing_until_it_is_read(tasks: Database, clock: ManualClock, directory: Directory) -> None:
    grants, _ = known(tasks, clock, directory)
    await write(tasks, *grants_of(clock.now_ms()))
    actor = GatewayActor(PLANNER)
    with pytest.raises(GrantMissing):
        grants.find(actor, context())
    await grants.load("child")
    found = grants.find(actor, context())
    assert (found.grant_id, found.root_grant_id, found.subject, found.max_level) == (
        "child",
        "root",
        ANN,
        AccessLevel.READ,
    )
    assert found.expires_ms == clock.now_ms() + HOUR
    assert found.refusal("op", "prod", "kv_key", "k") is None
    assert found.refusal("op", "test", "kv_key", "k") == "authority grant does not permit this workspace"
    # Another actor of the same process is another one.
    with pytest.raises(RequestError, match="another delegate"):
        grants.find(GatewayActor(OTHER), context())
    with pytest.raises(RequestError, match="another subject"):
        grants.find(actor, context(user_id="bob"))
    with pytest.raises(RequestError, match="not found"):
        await grants.load("made-up")


async def test_a_change_is_in_force_at_once(tasks: Database, clock: ManualClock, directory: Directory) -> None:
    grants, changes = known(tasks, clock, directory)
    await write(tasks, *grants_of(clock.now_ms()))
    await grants.load("child")
    actor = GatewayActor(PLANNER)
    grants.find(actor, context())
    changes.apply([("child", {"expires": clock.now_ms() + 5})], False)
    assert grants.find(actor, context()).expires_ms == clock.now_ms() + 5
    changes.apply([("root", {"revoked": 7})], False)
    with pytest.raises(RequestError, match="revoked"):
        grants.find(actor, context())
    changes.apply([], True)
    assert len(grants) == 0


async def test_a_found_grant_ends_with_its_time(tasks: Database, clock: ManualClock, directory: Directory) -> None:
    grants, _ = known(tasks, clock, directory)
    await write(tasks, *grants_of(clock.now_ms()))
    await grants.load("child")
    grants.find(GatewayActor(PLANNER), context())
    clock.advance(HOUR)
    with pytest.raises(RequestError, match="expired"):
        grants.find(GatewayActor(PLANNER), context())


async def test_what_a_read_has_missed_is_read_again(tasks: Database, clock: ManualClock, directory: Directory) -> None:
    await write(tasks, *grants_of(clock.now_ms()))
    held = Held(tasks)
    grants, changes = known(held, clock, directory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(grants.load, "child")
        await held.read_done.wait()
        # The revocation is committed and applied while the older rows are on their way.
        await tasks.run(lambda: store.revoke("root", 5))
        changes.apply([("root", {"revoked": 5})], False)
        held.go_on.set()
    assert held.reads == 2
    with pytest.raises(RequestError, match="revoked"):
        grants.find(GatewayActor(PLANNER), context())


async def test_the_least_used_grants_are_forgotten(tasks: Database, clock: ManualClock, directory: Directory) -> None:
    grants, _ = known(tasks, clock, directory, capacity=3)
    root, child = grants_of(clock.now_ms())
    await write(tasks, root, child)
    for number in range(5):
        await write(tasks, replace(root, grant_id=f"g{number}", root_id=f"g{number}"))
        await grants.load(f"g{number}")
    assert len(grants) == 3
    await grants.load("child")
    assert grants.find(GatewayActor(PLANNER), context()).grant_id == "child"


async def test_a_grant_ends_with_a_session_that_one_above_it_needs(
    tasks: Database, clock: ManualClock, directory: Directory
) -> None:
    root, child = grants_of(clock.now_ms())
    root = replace(root, terms=replace(root.terms, audience=Audience("session", "s1"), while_active=True))
    await write(tasks, root, child)
    grants, _ = known(tasks, clock, directory)
    directory.alive = frozenset({"s1"})
    await grants.load("child")
    found = grants.find(GatewayActor(PLANNER), context())
    assert found.expires_ms <= clock.now_ms() + RECHECK_MS
    directory.alive = frozenset()
    await trio.sleep(RECHECK_S)
    with pytest.raises(GrantMissing):
        grants.find(GatewayActor(PLANNER), context())
    await grants.load("child")
    with pytest.raises(RequestError, match="audience"):
        grants.find(GatewayActor(PLANNER), context())


async def test_a_session_of_another_node_is_looked_up_again(
    tasks: Database, clock: ManualClock, directory: Directory
) -> None:
    await write(tasks, *grants_of(clock.now_ms(), Audience("session", "s1")))
    grants, _ = known(tasks, clock, directory)
    directory.alive = frozenset({"s1"})
    actor = GatewayActor(PLANNER)
    await grants.load("child")
    grants.find(actor, context())
    assert directory.looks == 1
    directory.alive = frozenset()
    await trio.sleep(RECHECK_S)
    with pytest.raises(GrantMissing):
        grants.find(actor, context())
    for _ in range(2):
        await grants.load("child")
        with pytest.raises(RequestError, match="audience"):
            grants.find(actor, context())
    assert directory.looks == 2  # what has ended stays so


async def test_a_found_grant_holds_until_a_change_or_its_end(
    tasks: Database, clock: ManualClock, directory: Directory
) -> None:
    grants, changes = known(tasks, clock, directory)
    await write(tasks, *grants_of(clock.now_ms()))
    await grants.load("child")
    actor = GatewayActor(PLANNER)
    found = grants.find(actor, context())
    assert grants.holds(found)
    changes.apply([("another", {"revoked": 7})], False)
    assert not grants.holds(found)  # which grant has changed is not looked at
    found = grants.find(actor, context())
    assert grants.holds(found)
    changes.apply([("root", {"expires": clock.now_ms() + 5})], False)
    assert not grants.holds(found)
    found = grants.find(actor, context())
    clock.advance(4)
    assert grants.holds(found)
    clock.advance(1)
    assert not grants.holds(found)
    changes.apply([], True)
    assert not grants.holds(found)


async def test_a_grant_that_needs_a_session_holds_for_no_second_use(
    tasks: Database, clock: ManualClock, directory: Directory
) -> None:
    await write(tasks, *grants_of(clock.now_ms(), Audience("session", "s1")))
    grants, _ = known(tasks, clock, directory)
    directory.alive = frozenset({"s1"})
    await grants.load("child")
    assert not grants.holds(grants.find(GatewayActor(PLANNER), context()))
