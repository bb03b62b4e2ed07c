"""A node's lease: what happens when its database session ends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.cluster.errors import FencedError, LeaseLost
from aether_trio.cluster.node.lease import SURE_S, Lease, LeaseState, lock_class
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import GrantedLock
from tests.cluster.nodes import LONG_S, SHORT_GRACE, STEADY, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

X, Y = "ag::lab::x::1", "ag::lab::y::1"
ROW = "SELECT ended_ms FROM identity_locks WHERE identity = $1"


def lease_pids(place: PostgresEngine, node: Node) -> list[int]:
    """The server's sessions that hold this node's lock."""
    rows = place.rows(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted "
        "AND classid = $1::int::oid AND objid = $2::int::oid",
        lock_class(place.schema, "lease"),
        node.cluster.node_id,
    )
    return [pid for (pid,) in rows]


def end_lease_session(place: PostgresEngine, node: Node) -> None:
    [pid] = lease_pids(place, node)
    assert place.rows("SELECT pg_terminate_backend($1, 30000)", pid) == [(True,)]


def declare_dead(place: PostgresEngine, node: Node) -> object:
    return place.rows("SELECT aether_declare_dead($1, $2, 1)", lock_class(place.schema, "lease"), node.cluster.node_id)


async def test_a_lease_is_one_lock_of_one_session(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    assert len(lease_pids(place, a)) == len(lease_pids(place, b)) == 1
    assert a.cluster.node_id != b.cluster.node_id
    alive = await a.cluster.nodes.alive()
    assert [(one.name, one.address, one.epoch) for one in alive] == [
        ("node-1", "10.0.0.1:50051", 1),
        ("node-2", "10.0.0.2:50051", 1),
    ]
    await nodes.stop(a)
    with trio.fail_after(LONG_S):
        while lease_pids(place, a):  # the server takes a moment to see that a connection was cut
            await trio.sleep(0.02)


async def test_a_lease_that_no_node_declared_dead_goes_on(nodes: Nodes, place: PostgresEngine) -> None:
    a = await nodes.start()
    x = await a.claim(X)
    for times in range(1, 4):
        end_lease_session(place, a)
        await a.host.wait_told("back", times)
        assert a.host.told == ["lost", "back"] * times
    assert a.cluster.lease.epoch == 1
    assert a.host.lost == []
    assert a.cluster.locks.mine(X) == x.lock
    assert len(lease_pids(place, a)) == 1
    await a.write(X, x.lock.epoch)


async def test_a_node_declared_dead_comes_back_with_locks_that_none_took(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    x, y = await a.claim(X), await a.claim(Y)
    # The lease ends, and another node finds the lock free before the node knows. (This thread
    # is that of all nodes, so b cannot do it in time.)
    [pid] = lease_pids(place, a)
    place.rows("SELECT pg_terminate_backend($1, 30000)", pid)
    assert declare_dead(place, a) == [(True,)]
    place.outside(
        f"UPDATE identity_locks SET node_id = {b.cluster.node_id}, session_id = 'of-b', epoch = epoch + 1 WHERE identity = '{X}'"
    )
    with pytest.raises(FencedError):
        await a.write(X, x.lock.epoch)
    await a.host.wait_told("back")
    assert a.host.told == ["lost", "back"]
    assert a.host.lost == [x.lock]
    assert a.cluster.lease.epoch == 2
    assert a.cluster.locks.mine(X) is None
    assert a.cluster.locks.mine(Y) == y.lock
    await a.write(Y, y.lock.epoch)
    assert place.rows("SELECT node_epoch FROM identity_locks WHERE identity = $1", Y) == [(2,)]
    assert place.rows("SELECT session_id, ended_ms FROM identity_locks WHERE identity = $1", X) == [("of-b", None)]


async def test_a_claim_meets_a_lease_that_is_being_taken_back(nodes: Nodes, place: PostgresEngine) -> None:
    """In each outcome of the race one node owns the identity, and the other knows it."""
    a, b = await nodes.start(), await nodes.start()
    won = 0
    refused: list[Status] = []
    for number in range(20):
        identity = f"ag::lab::x::{number}"
        first = await a.claim(identity)
        end_lease_session(place, a)
        taken = False
        try:
            claimed = await b.claim(identity)
            taken = True
        except StatusError as error:
            refused.append(error.status)
        await a.host.wait_told("back", number + 1)
        assert (a.cluster.locks.mine(identity) is None) == taken
        assert (first.lock in a.host.lost) == taken
        if taken:
            won += 1
            await b.write(identity, claimed.lock.epoch)
    # It may also be declared dead and take its holds back before they are claimed.
    assert 1 + won <= a.cluster.lease.epoch <= 21
    assert refused == [Status.ALREADY_EXISTS] * (20 - won)


async def test_a_process_that_was_stopped_is_not_sure_of_its_lease(nodes: Nodes, place: PostgresEngine) -> None:
    a = await nodes.start()
    lease = a.cluster.lease
    with trio.fail_after(LONG_S):
        await lease.wait_sure()
        with trio.testing.assert_no_checkpoints():
            await lease.wait_sure()
        # Nothing of this process runs from here on, as while it is stopped.
        end_lease_session(place, a)
        declare = "SELECT pg_advisory_xact_lock_shared($1, $2), aether_declare_dead($1, $2, 1)"
        place.rows(declare, lock_class(place.schema, "lease"), lease.node_id)
        time.sleep(STEADY.probe_s + SURE_S + 0.1)
        assert (lease.held, lease.epoch) == (True, 1)  # it does not know
        await lease.wait_sure()
        assert lease.epoch == 2


async def test_nothing_of_an_old_lease_is_written_under_the_next_one(nodes: Nodes, place: PostgresEngine) -> None:
    a = await nodes.start()
    x = await a.claim(X)
    refused = 0

    async def write() -> None:
        nonlocal refused
        try:
            await a.write(X, x.lock.epoch)
        except FencedError:
            refused += 1

    place.outside("BEGIN; LOCK TABLE counters IN EXCLUSIVE MODE")
    [pid] = lease_pids(place, a)
    async with trio.open_nursery() as nursery:
        for _ in range(300):  # more than a group: most of them wait in the queue
            nursery.start_soon(write)
        await trio.sleep(0.2)
        place.outside("COMMIT")
        # The node that waits for the lock first has it first; the declaration waits for the
        # transactions of that node.
        declare = (
            "SELECT pg_terminate_backend($1), pg_advisory_xact_lock_shared($2, $3), aether_declare_dead($2, $3, 1)"
        )
        await trio.to_thread.run_sync(place.rows, declare, pid, lock_class(place.schema, "lease"), a.cluster.node_id)
        written = place.rows("SELECT count(*) FROM history")
    assert refused > 0
    assert place.rows("SELECT count(*) FROM history") == written == [(300 - refused,)]
    await a.host.wait_told("back")
    await a.write(X, x.lock.epoch)


async def test_after_the_grace_without_a_lease_a_node_comes_back_empty(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(limits=SHORT_GRACE), await nodes.start()
    await a.claim(X)
    await b.claim(Y)
    # A transaction keeps the row that says which epoch comes next: every attempt to come back waits
    # there.
    [pid] = lease_pids(place, a)
    place.rows("SELECT pg_terminate_backend($1, 30000)", pid)
    declare_dead(place, a)
    place.outside(f"BEGIN; SELECT FROM nodes WHERE node_id = {a.cluster.node_id} FOR UPDATE")
    try:
        await a.host.wait_told("lost")
        waited: list[BaseException] = []

        async def wait() -> None:
            try:
                await a.claim("ag::lab::z::1")
            except LeaseLost as error:
                waited.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await a.host.wait_told("gone")
        assert len(waited) == 1
        assert a.host.told == ["lost", "gone"]
        assert a.cluster.lease.state is LeaseState.AWAY
        assert a.cluster.locks.mine(X) is None
        with pytest.raises(LeaseLost):
            await a.claim(X)
        # Of each client that tries, something would wait until storage answers.
        assert a.cluster.locks.batcher.statistics().waiting == 0
    finally:
        place.outside("COMMIT")
    await until(lambda: a.cluster.lease.held)
    assert a.cluster.lease.epoch >= 2
    assert a.host.told == ["lost", "gone"]
    again = await b.claim(X)
    assert again.lock.epoch == 2
    await a.claim("ag::lab::z::1")


async def test_a_registration_that_a_failover_has_lost_is_made_anew(nodes: Nodes, place: PostgresEngine) -> None:
    a = await nodes.start()
    x = await a.claim(X)
    before = a.cluster.node_id
    place.outside("DELETE FROM identity_locks; DELETE FROM nodes")
    end_lease_session(place, a)
    await a.host.wait_told("back")
    assert a.cluster.node_id > before
    assert a.host.lost == [x.lock]
    b = await nodes.start()
    await a.claim(X, session="s1")
    await until(lambda: a.cluster.bus.statistics().reconnects >= 1)
    assert (await b.claim(X, resume="s1")).lock.epoch == 2
    assert a.host.asked_for == [(X, "s1")]


async def test_holds_that_a_failover_has_lost_are_lost(nodes: Nodes, place: PostgresEngine) -> None:
    a = await nodes.start()
    x, y = await a.claim(X), await a.claim(Y)
    place.outside(f"DELETE FROM identity_locks WHERE identity = '{X}'")
    end_lease_session(place, a)
    await a.host.wait_told("back")
    assert a.host.lost == [x.lock]
    assert a.cluster.locks.mine(Y) == y.lock
    assert a.cluster.lease.epoch == 1


async def test_a_dead_node_without_requests_is_found_by_the_sweep(nodes: Nodes, place: PostgresEngine) -> None:
    quiet = ClusterLimits(sweep_s=1000.0)
    a, b = await nodes.start(limits=quiet), await nodes.start(limits=quiet)
    place.outside("INSERT INTO nodes (token, name, address, version, started_ms) VALUES ('t', 'gone', '', '', 1)")
    await b.cluster.nodes.sweep()
    assert len(await b.cluster.nodes.alive()) == 3, "one look may meet a node that is just coming back"
    await b.cluster.nodes.sweep()
    assert [one.node_id for one in await b.cluster.nodes.alive()] == [a.cluster.node_id, b.cluster.node_id]
    assert b.cluster.nodes.statistics().declared == 1


async def claim_while_the_lease_comes_back(
    node: Node,
    place: PostgresEngine,
    monkeypatch: pytest.MonkeyPatch,
    claim: Callable[[], Awaitable[None]],
    once_answered: Callable[[], object] = lambda: None,
) -> None:
    """Have X claimed after the read of the lease's rows, before it is back."""
    try_once = Lease._try

    async def try_and_stall(self: Lease, connection: Any, *, empty: bool) -> Any:
        regained = await try_once(self, connection, empty=empty)
        place.outside("COMMIT")
        await until(lambda: bool(place.rows(ROW, X)))
        await trio.sleep(0.5)  # for the answer to the claim
        once_answered()
        return regained

    monkeypatch.setattr(Lease, "_try", try_and_stall)
    place.outside("BEGIN; LOCK TABLE identity_locks IN EXCLUSIVE MODE")
    waiting = "SELECT FROM pg_locks WHERE relation = 'identity_locks'::regclass AND NOT granted"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        await until(lambda: bool(place.rows(waiting)))
        end_lease_session(place, node)
        await node.host.wait_told("back")


async def test_a_claim_granted_while_the_lease_comes_back_is_not_taken_for_lost(
    nodes: Nodes, place: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the lease were read before the claim was committed."""
    a = await nodes.start()
    granted: list[GrantedLock] = []

    async def claim() -> None:
        granted.append(await a.claim(X))

    await claim_while_the_lease_comes_back(a, place, monkeypatch, claim)
    assert (a.cluster.lease.epoch, a.host.lost) == (1, [])
    assert a.cluster.locks.mine(X) == granted[0].lock
    await a.write(X, granted[0].lock.epoch)


async def test_a_lock_granted_while_the_lease_comes_back_is_free_when_its_claim_is_cancelled(
    nodes: Nodes, place: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await nodes.start()
    claiming = trio.CancelScope()

    async def claim() -> None:
        with claiming:
            await a.claim(X)

    await claim_while_the_lease_comes_back(a, place, monkeypatch, claim, claiming.cancel)
    assert claiming.cancelled_caught
    await until(lambda: place.rows(ROW, X) != [(None,)])
