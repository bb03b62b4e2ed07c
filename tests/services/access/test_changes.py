"""Changes of access data: one after another, applied in order, checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access import changes as changes_module
from aether_trio.services.access.changes import STALE_S, AccessChanges, Draft, NoPeers
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.storage.base import Database, Program
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import Engine

LIMIT_S = 60.0


class Rows:
    """An AuditAppender that counts."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        self.events += events
        return
        yield


class Node(AccessChanges):
    """One node's view of a kind of things."""

    def __init__(self, database: Database, clock: ManualClock, peers: Any = None) -> None:
        self.gate = LeaseGate()
        self.rows = Rows()
        super().__init__(database, clock, peers or NoPeers(), self.gate, self.rows)
        self.things: dict[str, Any] = {}
        self.reloads = 0
        self.when_applied("thing", self._apply)

    def _apply(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        self.reloads += everything
        for key, value in items:
            if value is None:
                self.things.pop(key, None)
            else:
                self.things[key] = value


class Peers:
    """The other nodes of this process, which are told at once."""

    def __init__(self, all_peers: list[Peers]) -> None:
        self.version = -1
        self.deaf = False
        self.dead = False
        self.calls: list[Callable[[], None]] = []
        self.seen_calls: list[Callable[[], None]] = []
        self._all = all_peers
        all_peers.append(self)

    def announce(self, version: int) -> None:
        for one in self._all:
            if one is not self and not one.deaf:
                for call in one.calls:
                    call()

    def on_announced(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def on_seen(self, call: Callable[[], None]) -> None:
        self.seen_calls.append(call)

    async def seen(self, version: int) -> bool:
        self.version = version
        for one in self._all:
            for call in one.seen_calls:
                call()
        return not self.dead

    async def unconfirmed(self, version: int) -> list[str]:
        return [f"n{number}" for number, one in enumerate(self._all) if one is not self and one.version < version]


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    with trio.fail_after(LIMIT_S):
        for node in nodes:
            await node.start()
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def database(engine: Engine) -> AsyncIterator[Database]:
    async with engine.open("tasks") as opened:
        yield opened


def put(key: str, value: Any) -> Callable[[Draft], Program[str]]:
    def program(draft: Draft) -> Program[str]:
        draft.record("thing", key, value)
        draft.audit(AuditEvent(at_ms=draft.now_ms, event_type=EventType.ACL, operation=key))
        return f"{key} is {value}"
        yield

    return program


async def test_a_change_is_applied_when_it_is_answered(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)
    async with running(node):
        done = await node.commit(put("a", 1))
        assert (done.result, done.version, done.missing) == ("a is 1", 1, ())
        assert node.things == {"a": 1}
        await node.commit(put("a", None))
        assert node.things == {}
        assert node.version == 2
        assert [event.operation for event in node.rows.events] == ["a", "a"]


async def test_a_program_that_records_nothing_has_no_version(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)

    def refuse(draft: Draft) -> Program[str]:
        return "no"
        yield

    async with running(node):
        done = await node.commit(refuse)
        assert (done.result, done.version) == ("no", 0)
        assert node.version == 0


async def test_a_program_that_raises_leaves_nothing(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)

    def fail(draft: Draft) -> Program[str]:
        draft.record("thing", "a", 1)
        raise ValueError("no")
        yield

    async with running(node):
        with pytest.raises(ValueError, match="no"):
            await node.commit(fail)
        await node.commit(put("b", 2))
        assert (node.version, node.things) == (1, {"b": 2})


async def test_a_node_that_starts_later_reads_on(database: Database, clock: ManualClock) -> None:
    first = Node(database, clock)
    async with running(first):
        await first.commit(put("a", 1))
    second = Node(database, clock)
    await second.start()
    assert (second.version, second.reloads) == (1, 1)


async def test_a_change_waits_for_the_other_nodes(database: Database, clock: ManualClock) -> None:
    everyone: list[Peers] = []
    one, two = Node(database, clock, Peers(everyone)), Node(database, clock, Peers(everyone))
    async with running(one, two):
        done = await one.commit(put("a", 1))
        assert done.missing == ()
        assert two.things == {"a": 1}
        assert (await two.commit(put("b", 2))).missing == ()
        assert one.things == {"a": 1, "b": 2}


async def test_an_answer_names_a_node_that_was_not_heard_of(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.2)
    everyone: list[Peers] = []
    one, deaf = Node(database, clock, Peers(everyone)), Node(database, clock, Peers(everyone))
    async with running(one):
        await deaf.start()  # and it never looks again
        done = await one.commit(put("a", 1))
        assert done.missing == ("n1",)
        assert "n1" in done.caveat


async def test_a_program_that_finds_its_work_done_waits_for_it_as_well(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revocation that is asked for again, as its answer was lost."""
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.2)
    everyone: list[Peers] = []
    one, deaf = Node(database, clock, Peers(everyone)), Node(database, clock, Peers(everyone))

    def nothing(draft: Draft) -> Program[str]:
        return "it is revoked already"
        yield

    async with running(one):
        await deaf.start()
        await one.commit(put("a", None))
        again = await one.commit(nothing)
        assert (again.result, again.version, again.missing) == ("it is revoked already", 0, ("n1",))
        await deaf._catch_up()
        assert (await one.commit(nothing)).missing == ()


async def test_a_look_of_a_node_that_was_declared_dead_does_not_count(database: Database, clock: ManualClock) -> None:
    """Changes are answered without it, so it may not go on by what it reads."""
    everyone: list[Peers] = []
    node, other = Node(database, clock, Peers(everyone)), Node(database, clock, Peers(everyone))
    if not database.shared:
        return
    await node.start()
    await other.start()
    everyone[0].dead = True
    node._fresh_until_s = trio.current_time()
    async with running(other):
        await other.commit(put("a", 1))
        await node._catch_up()
        assert node.things == {"a": 1}
        assert node.gate.is_closed
        everyone[0].dead = False
        await node._catch_up()
        assert not node.gate.is_closed


async def test_a_check_is_made_again_when_another_change_came_first(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.1)
    monkeypatch.setattr(changes_module, "LOOK_S", LIMIT_S)
    everyone: list[Peers] = []
    one, two = Node(database, clock, Peers(everyone)), Node(database, clock, Peers(everyone))
    checks: list[int] = []

    def check() -> None:
        checks.append(two.version)
        if "right" not in two.things:
            raise RequestError(Code.PERMISSION_DENIED, "the right is gone")

    async with running(one):
        await one.commit(put("right", True))
        await two.start()
        two.things["right"] = True
        everyone[1].deaf = True
        await one.commit(put("right", None))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.run)
            with pytest.raises(RequestError, match="the right is gone"):
                await two.commit(put("stolen", True), check)
            nursery.cancel_scope.cancel()
        assert checks == [1, 2]
        assert "stolen" not in one.things
        assert "stolen" not in two.things


async def test_many_changes_at_once_are_all_applied_in_order(database: Database, clock: ManualClock) -> None:
    everyone: list[Peers] = []
    nodes = [Node(database, clock, Peers(everyone)) for _ in range(3)]
    async with running(*nodes):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(nodes[number % 3].commit, put(f"k{number}", number), lambda: None)
        for node in nodes:
            await node.wait_settled(30)
        assert [len(node.things) for node in nodes] == [30, 30, 30]


async def test_a_node_that_is_too_far_behind_reads_everything(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "KEPT_CHANGES", 3)
    monkeypatch.setattr(changes_module, "FORGET_EVERY", 5)
    node, behind = Node(database, clock), Node(database, clock)
    async with running(node):
        await behind.start()
        for number in range(10):
            await node.commit(put("a", number))
        await behind._catch_up()
        assert (behind.version, behind.reloads) == (10, 2)


async def test_a_caller_that_leaves_does_not_take_the_change_back(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)
    async with running(node):
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.commit(put("a", 1))
        await node.commit(put("b", 2))
        assert node.things.get("b") == 2
        assert node.version in {1, 2}
        assert ("a" in node.things) == (node.version == 2)


async def test_input_stops_when_the_node_cannot_look(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)
    await node.start()
    if not database.shared:
        assert not node.gate.is_closed
        return
    assert node.gate.closes_at_s <= trio.current_time() + STALE_S
    asked: list[bool] = []
    node.gate.on_stale = lambda: asked.append(True)
    node.gate.fresh_until(trio.current_time())
    assert node.gate.is_closed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.gate.wait)
        while not asked:
            await trio.sleep(0)
        await node._catch_up()
    assert not node.gate.is_closed


async def test_an_expiry_closes_the_gate_until_it_is_handled(database: Database, clock: ManualClock) -> None:
    node = Node(database, clock)
    expires_ms = clock.now_ms() + 50
    expired: list[int] = []
    node.when_expired(
        lambda now_ms: 0 if expired else expires_ms,
        lambda: expired.append(1) if clock.now_ms() >= expires_ms else None,
    )
    async with running(node):
        assert node.gate.closes_at_s <= trio.current_time() + 0.05
        clock.advance(50)
        await node.gate.wait()
        while not expired:
            await trio.sleep(0.01)
