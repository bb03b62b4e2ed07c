"""Killed and stopped node processes: identities are free, and nothing is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from aether_trio.cluster.node.liveness import _END_DEAF as END_DEAF
from aether_trio.model.errors import Status, StatusError
from tests.cluster.children import Child, Refused, open_children
from tests.cluster.nodes import LONG_S, SHORT_GRACE, STEADY, Nodes, history_is_ordered, until
from tests.helpers.engines import PostgresEngine

pytestmark = pytest.mark.crash

MIB = 1024 * 1024
X, Y = "ag::lab::x::1", "ag::lab::y::1"


async def test_the_holds_of_a_killed_process_are_free_at_once(nodes: Nodes, place: PostgresEngine) -> None:
    node = await nodes.start()
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        for number in range(100):
            await child.claim(f"ag::lab::x::{number}", f"s{number}")
        with pytest.raises(StatusError) as refused:
            await node.claim("ag::lab::x::0")
        assert refused.value.status is Status.ALREADY_EXISTS
        await child.kill()
        claimed = []

        async def claim(number: int) -> None:
            claimed.append(await node.claim(f"ag::lab::x::{number}", resume=f"s{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(claim, number)
        assert {one.lock.epoch for one in claimed} == {2}
        assert all(one.history is not None for one in claimed)
        statistics = node.cluster.nodes.statistics()
        # Once for all of them, and without waiting for an answer.
        assert (statistics.declared, statistics.cut_off) == (1, 0)


async def test_a_stopped_process_loses_what_is_wanted_and_keeps_the_rest(nodes: Nodes, place: PostgresEngine) -> None:
    node = await nodes.start(limits=SHORT_GRACE)
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        x, y = await child.claim(X, "x1"), await child.claim(Y, "y1")
        await child.do("write", identity=X, epoch=x)
        child.stop()
        before = trio.current_time()
        claimed = await node.claim(X)
        assert trio.current_time() - before >= SHORT_GRACE.lease_grace_s
        assert claimed.lock.epoch == x + 1
        assert node.cluster.nodes.statistics().cut_off == 1
        await node.write(X, claimed.lock.epoch)
        # It wakes in the middle of what it was doing, with commands waiting that it still believes
        # in.
        writes: list[BaseException] = []
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(_write, child, X, x, writes)
            child.go_on()
        assert await child.wait_told("back") == [X]
        assert ("gone", []) not in child.told
        assert len(writes) == 20
        assert all(str(error).startswith(("FencedError", "SessionEnded")) for error in writes)
        assert history_is_ordered(place) == {X: [x, claimed.lock.epoch]}
        assert place.rows("SELECT epoch, alive FROM nodes WHERE node_id = $1", child.node_id) == [(2, True)]
        await child.do("write", identity=Y, epoch=y)
        with pytest.raises(StatusError):
            await (await nodes.start()).claim(Y)
        with pytest.raises(Refused, match="ALREADY_EXISTS"):
            await child.claim(X, "x2")


async def _write(child: Child, identity: str, epoch: int, refused: list[BaseException]) -> None:
    try:
        await child.do("write", identity=identity, epoch=epoch)
    except Refused as error:
        refused.append(error)


@pytest.mark.parametrize("prepared", [True, False], ids=["between two statements", "within one"])
async def test_a_process_that_is_stopped_in_the_middle_of_a_write_does_not_keep_its_locks(
    nodes: Nodes, place: PostgresEngine, prepared: bool
) -> None:
    """It may be idle in its transaction, or active: it has just prepared a statement."""
    node = await nodes.start(limits=SHORT_GRACE)
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        x = await child.claim(X, "x1")
        if prepared:
            await child.do("write", identity=X, epoch=x)
        place.outside("BEGIN; LOCK TABLE history IN EXCLUSIVE MODE")
        async with trio.open_nursery() as nursery:
            refused: list[BaseException] = []
            nursery.start_soon(_write, child, X, x, refused)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'history'::regclass"
            await until(lambda: place.rows(waiting) == [(1,)])
            child.stop()
            place.outside("COMMIT")
            claimed = await node.claim(X)
            await node.write(X, claimed.lock.epoch)
            child.go_on()
        await child.wait_told("back")
        assert len(refused) == 1
        epochs = history_is_ordered(place)
        assert epochs == {X: [x, claimed.lock.epoch] if prepared else [claimed.lock.epoch]}


async def test_a_process_that_stands_still_loses_its_lease_although_no_node_requests_its_identities(
    nodes: Nodes, place: PostgresEngine
) -> None:
    node = await nodes.start(limits=replace(STEADY, sweep_s=0.2, look_again_s=1.0, silent_s=2.0))
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        x = await child.claim(X, "x1")
        child.stop()
        await until(lambda: node.cluster.nodes.statistics().declared > 0)
        assert node.cluster.nodes.statistics().cut_off == 1
        claimed = await node.claim(X)
        assert claimed.lock.epoch == x + 1
        child.go_on()
        assert await child.wait_told("back") == [X]
        with pytest.raises(Refused):
            await child.do("write", identity=X, epoch=x)


async def test_a_process_that_looks_at_its_lease_keeps_it_when_idle(nodes: Nodes, place: PostgresEngine) -> None:
    node = await nodes.start(limits=replace(STEADY, sweep_s=LONG_S, silent_s=0.0))
    looked = "SELECT max(state_change) FROM pg_stat_activity WHERE application_name = 'aether-lease' AND pid = {}"
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        await child.claim(X, "x1")
        [(other,)] = place.rows(f"SELECT max(node_id) FROM {place.schema}.nodes")
        [(pid,)] = place.rows(f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {other} AND granted")
        for _ in range(3):
            [(before,)] = place.rows(looked.format(pid))
            with trio.fail_after(LONG_S):
                while not await node.cluster.nodes.look_for_silent():
                    await trio.sleep(0.02)  # it was looking in that moment
                while place.rows(looked.format(pid)) == [(before,)]:
                    await trio.sleep(0.02)
        statistics = node.cluster.nodes.statistics()
        assert (statistics.declared, statistics.cut_off) == (0, 0)


STUCK = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'aether-listen' AND wait_event = 'ClientWrite'"
NOTIFY = "SELECT count(pg_notify($1, n || repeat('x', 7000))) FROM generate_series(1, $2::int) AS n"


async def test_a_process_that_stands_still_does_not_keep_the_servers_notifications(
    nodes: Nodes, place: PostgresEngine
) -> None:
    """PostgreSQL keeps all, up to 8 GiB, until all that listen have read them."""
    await nodes.start(limits=replace(STEADY, sweep_s=0.2, look_again_s=1.0, silent_s=2.0))
    kept = "SELECT (pg_notification_queue_usage() * 8 * 1024 ^ 3)::bigint"
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        child.stop()
        place.rows(NOTIFY, f"{place.schema}_n{child.node_id}", 2000)
        await until(lambda: bool(place.rows(STUCK)))
        assert place.rows(kept)[0][0] > 8 * MIB
        await until(lambda: not place.rows(STUCK))

        def cut() -> bool:
            # A NOTIFY makes PostgreSQL drop the notifications that all listeners have read.
            place.rows(NOTIFY, "unheard", 10)
            return bool(place.rows(kept)[0][0] < MIB)

        await until(cut)


async def test_a_node_leaves_the_connections_of_other_roles_alone(nodes: Nodes, place: PostgresEngine) -> None:
    """Its look for dead nodes would fail at one that it sees and may not end."""
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        child.stop()
        place.rows(NOTIFY, f"{place.schema}_n{child.node_id}", 2000)
        await until(lambda: bool(place.rows(STUCK)))
        place.outside("CREATE ROLE sees_all; GRANT pg_monitor TO sees_all; SET ROLE sees_all")
        try:
            assert place.rows(STUCK)
            assert place.rows(END_DEAF, 0.0) == []
        finally:
            place.outside("RESET ROLE; DROP ROLE sees_all")
        assert (True,) in place.rows(END_DEAF, 0.0)
