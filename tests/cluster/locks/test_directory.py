"""Lists of sessions on each node: filters, pages, and nodes that die meanwhile."""

from __future__ import annotations

import pytest
import trio

from aether_trio.model.identity import Kind
from aether_trio.model.ownership import SessionFilter, SessionList, SessionRecord
from aether_trio.storage.base import StorageUnavailable
from tests.cluster.children import open_children
from tests.cluster.nodes import LONG_S, STEADY, Nodes, until
from tests.cluster.seats import LATE, SOON, Seat, seat, seats
from tests.helpers.engines import PostgresEngine

ALL_SESSIONS = SessionFilter()


def names(page: SessionList) -> list[str]:
    return [one.identity.text for one in page.sessions]


async def listed(seat: Seat, wanted: SessionFilter = ALL_SESSIONS) -> list[str]:
    page = await seat.directory.page(wanted, 0, 1000)
    assert page.total == len(page.sessions)
    return names(page)


async def lists(seat: Seat, *wanted: str) -> bool:
    return await listed(seat) == [*wanted]


async def test_every_node_lists_the_sessions_of_all(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), await nodes.start()) as three:
        a, b, c = three
        here = await a.connect("ag::lab::x::1")
        there = await b.connect("ag::lab::x::2")
        await b.connect("us::ada::1")
        await c.connect("sv::search::1")
        for one in three:
            assert await listed(one) == ["ag::lab::x::1", "ag::lab::x::2", "sv::search::1", "us::ada::1"]
        here.last_activity_ms = 123_456
        first, second = (await a.directory.page(SessionFilter(workspace="lab"), 0, 10)).sessions
        assert first == SessionRecord(here.session_id, here.identity, "lab", 5_000, here.address, 123_456)
        assert (second.session_id, second.connected_ms, second.peer) == (there.session_id, 5_000, there.address)
        # Of another node's session the row is all there is to go by; its time is the server's.
        assert second.last_activity_ms > 1_000_000_000_000
        assert (await b.directory.page(SessionFilter(workspace="lab"), 0, 10)).sessions[1].last_activity_ms == 7_000


async def test_lists_are_filtered_and_paged_with_a_total(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        for number in range(25):
            await (a, b)[number % 2].connect(f"ag::lab::x::{number:02}")
        for text in ("ag::other::x::1", "tu::lab::x::1", "ta::lab::x::1", "us::ada::1", "sv::lab::1"):
            await b.connect(text)
        assert await listed(a, SessionFilter(frozenset({Kind.TASK, Kind.UNIQUE_TASK}))) == [
            "ta::lab::x::1",
            "tu::lab::x::1",
        ]
        assert await listed(a, SessionFilter(frozenset({Kind.AGENT}), "other")) == ["ag::other::x::1"]
        assert await listed(a, SessionFilter(workspace="nowhere")) == []
        agents = SessionFilter(frozenset({Kind.AGENT}), "lab")
        found: list[str] = []
        for offset in range(0, 30, 7):
            page = await b.directory.page(agents, offset, 7)
            assert page.total == 25
            found += names(page)
        assert found == [f"ag::lab::x::{number:02}" for number in range(25)]
        assert await a.directory.page(agents, 1000, 7) == SessionList([], 25)


async def test_pages_stay_in_place_while_sessions_behind_them_come_and_go(nodes: Nodes) -> None:
    """A page starts at a position: sessions that come and go behind it do not move it."""
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        for number in range(40):
            await (a, b)[number % 2].connect(f"ag::lab::x::{number:02}")
        rounds = 0

        async def come_and_go() -> None:
            nonlocal rounds
            while True:
                b.leave(await b.connect(f"ag::lab::y::{rounds}"))
                rounds += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_and_go)
            while rounds < 20:
                found = []
                for offset in range(0, 40, 8):
                    page = await a.directory.page(ALL_SESSIONS, offset, 8)
                    found += names(page)
                    assert page.total >= 40
                assert found == [f"ag::lab::x::{number:02}" for number in range(40)]
            nursery.cancel_scope.cancel()


async def test_an_identity_that_is_passed_around_is_listed_once(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), await nodes.start()) as three:
        looked = passed = 0
        done = trio.Event()

        async def pass_around(name: str) -> None:
            nonlocal passed
            guest = await three[0].connect(name)
            for turn in range(1, 16):
                to = three[turn % 3]
                three[(turn - 1) % 3].registry.release(guest)  # type: ignore[arg-type]
                guest = await to.connect(name, resume=guest.session_id)
                passed += 1

        async def look() -> None:
            nonlocal looked
            while not done.is_set():
                for one in three:
                    page = await one.directory.page(ALL_SESSIONS, 0, 100)
                    assert len(set(names(page))) == page.total <= 4
                    assert len({found.session_id for found in page.sessions}) == page.total
                    looked += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with trio.open_nursery() as passing:
                for number in range(4):
                    passing.start_soon(pass_around, f"ag::lab::x::{number}")
            done.set()
        assert passed == 60
        assert looked > 3
        assert len(await listed(three[0])) == 4


async def test_a_window_is_where_it_has_switched_to(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), limits=LATE) as (a, b):
        window = await a.connect("us::ada::1")
        await b.connect("ag::lab::x::1")
        assert await listed(a, SessionFilter(workspace="lab")) == ["ag::lab::x::1"]
        before = await b.directory.find(window.session_id)
        a.move(window, "lab")
        # The node that did it finds what it did; the others as soon as it is written.
        assert await listed(a, SessionFilter(workspace="lab")) == ["ag::lab::x::1", "us::ada::1"]
        found = await b.directory.find(window.session_id)
        assert before is not None
        assert found is not None
        assert (before.workspace, found.workspace) == ("", "lab")
        assert found.last_activity_ms >= before.last_activity_ms
        a.move(window, "")
        a.move(window, "yard")
        assert await listed(a, SessionFilter(workspace="yard")) == ["us::ada::1"]
        assert await listed(b, SessionFilter(workspace="lab")) == ["ag::lab::x::1"]
        # The next session of this window begins in no workspace, also when the row is taken over.
        a.registry.release(window)  # type: ignore[arg-type]
        again = await b.connect("us::ada::1", resume=window.session_id)
        assert await listed(b, SessionFilter(workspace="yard")) == []
        a.move(window, "late")  # of a session that has lost its identity
        await a.directory.page(ALL_SESSIONS, 0, 1)
        found = await a.directory.find(again.session_id)
        assert found is not None
        assert found.workspace == ""


async def test_switches_of_the_moment_are_one_statement(nodes: Nodes, place: PostgresEngine) -> None:
    async with seats(await nodes.start(), limits=LATE) as (a,):
        windows = [await a.connect(f"us::ada::{number:03}") for number in range(100)]
        for turn in range(3):
            for window in windows:
                a.move(window, f"w{turn}")
        assert len(await listed(a, SessionFilter(workspace="w2"))) == 100
        statistics = a.directory.statistics()
        assert (statistics.move_statements, statistics.moves) == (1, 100)
        assert place.rows("SELECT DISTINCT place FROM identity_locks") == [("w2",)]


async def test_switches_wait_for_a_database_that_is_away(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seats(await nodes.start()) as (a,):
        window = await a.connect("us::ada::1")
        fetch, away = a.directory._queries.fetch, True

        async def fail(sql: str, *args: object) -> list[object]:
            if away:
                await trio.lowlevel.checkpoint()
                raise StorageUnavailable("away")
            return await fetch(sql, *args)

        monkeypatch.setattr(a.directory._queries, "fetch", fail)
        a.move(window, "lab")
        with pytest.raises(StorageUnavailable):
            await a.directory.page(ALL_SESSIONS, 0, 10)
        a.move(window, "yard")
        away = False
        await until(lambda: a.directory.statistics().moves > 0)
        assert await listed(a, SessionFilter(workspace="yard")) == ["us::ada::1"]


async def test_who_is_leaving_is_not_listed_by_its_node(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        guest = await a.connect("us::ada::1")
        await b.connect("us::ada::2")
        a.registry.release(guest)  # type: ignore[arg-type]
        a.node.host.left.append("us::ada::1")  # and its row waits for its last writes
        assert await listed(a) == ["us::ada::2"]
        assert await a.directory.find(guest.session_id) is None
        assert not (await a.directory.last_seen("us::ada::1")).connected
        # A window of the same user on another node is connected all the same.
        assert (await a.directory.user_last_seen("ada")).connected
        a.node.host.left.append("us::ada::2")  # of this node alone
        assert await listed(a) == ["us::ada::2"]


async def test_status_says_if_a_participant_is_connected_or_since_when_not(nodes: Nodes, place: PostgresEngine) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        assert await b.directory.last_seen("us::ada::1") == await b.directory.user_last_seen("ada")
        assert (await b.directory.user_last_seen("ada")).last_ms == 0
        one, two = await a.connect("us::ada::1"), await a.connect("us::ada::2")
        await a.connect("us::ada:x::1")
        await a.connect("us::adab::1")
        assert (await a.directory.last_seen("us::ada::1")).last_ms == 7_000, (
            "the node of a session knows more than its row"
        )
        seen = await b.directory.last_seen("us::ada::1")
        assert seen.connected
        assert seen.last_ms > 1_000_000_000_000
        a.leave(one)
        await a.node.cluster.locks.batcher.settled()
        ended = await b.directory.last_seen("us::ada::1")
        assert not ended.connected
        assert ended.last_ms >= seen.last_ms
        assert (await b.directory.user_last_seen("ada")).connected
        a.leave(two)
        await a.node.cluster.locks.batcher.settled()
        seen = await b.directory.user_last_seen("ada")
        [(last_ms,)] = place.rows("SELECT max(ended_ms) FROM identity_locks")
        assert (seen.connected, seen.last_ms) == (False, last_ms)


async def test_who_was_on_a_node_that_has_left_is_gone_at_once(nodes: Nodes) -> None:
    leaving = await nodes.start()
    async with seats(await nodes.start(), limits=LATE) as (a,):
        async with seat(leaving) as other:
            await other.connect("ag::lab::x::1")
            await a.connect("ag::lab::x::2")
            assert len(await listed(a)) == 2
        await nodes.stop(leaving)
        assert await listed(a) == ["ag::lab::x::2"]
        seen = await a.directory.last_seen("ag::lab::x::1")
        assert not seen.connected
        assert seen.last_ms > 0


@pytest.mark.crash
async def test_the_sessions_of_a_killed_node_vanish_after_two_lists(nodes: Nodes, place: PostgresEngine) -> None:
    # A sweep that never comes: only looking finds the dead node.
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        node = await nodes.start()
        node.cluster.nodes.sweep = trio.sleep_forever  # type: ignore[method-assign, assignment]
        async with seat(node, SOON) as a:
            await a.connect("ag::lab::x::0")
            for number in range(1, 4):
                await child.claim(f"ag::lab::x::{number}", f"s{number}")
            assert len(await listed(a)) == 4
            assert (await a.directory.last_seen("ag::lab::x::1")).connected
            await child.kill()
            await until(lambda: lists(a, "ag::lab::x::0"))
            seen = await a.directory.last_seen("ag::lab::x::1")
            [(died_ms,)] = place.rows("SELECT ended_ms FROM nodes WHERE NOT alive")
            assert (seen.connected, seen.last_ms) == (False, died_ms)
            assert node.cluster.nodes.statistics().declared == 1


async def test_a_node_without_a_lease_for_a_moment_keeps_sessions_listed(nodes: Nodes, place: PostgresEngine) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        await a.connect("ag::lab::x::1")
        place.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aether-lease'")
        await a.node.host.wait_told("back")
        await b.node.host.wait_told("back")
        await until(lambda: lists(b, "ag::lab::x::1"))
        assert a.node.host.lost == []


async def test_lists_go_on_when_their_connection_is_killed(nodes: Nodes, place: PostgresEngine) -> None:
    async with seats(await nodes.start()) as (a,):
        await a.connect("ag::lab::x::1")
        for _ in range(5):
            place.rows(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'aether-directory'"
            )
            with trio.fail_after(LONG_S):
                assert await listed(a) == ["ag::lab::x::1"]
