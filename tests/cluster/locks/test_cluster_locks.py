"""Claims, questions and releases, between nodes that are all well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from aether_trio.cluster.locks.claim_batcher import OwnerAnswer, Release
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import LockRequest, SessionHistory
from aether_trio.storage.base import RefusedError
from tests.cluster.nodes import LONG_S, STEADY, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

X = "ag::lab::x::1"


@contextmanager
def refuses(status: Status) -> Iterator[None]:
    with pytest.raises(StatusError) as caught:
        yield
    assert caught.value.status is status


async def test_a_released_identity_is_free_for_every_node(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    for epoch in range(1, 9, 2):
        for step, node in enumerate((a, b)):
            claimed = await node.claim(X)
            assert claimed.lock.epoch == epoch + step
            assert node.cluster.locks.release(claimed.lock)
            assert not node.cluster.locks.release(claimed.lock)


async def test_a_released_identity_is_leaving_until_the_others_can_know(nodes: Nodes) -> None:
    a = await nodes.start()
    claimed = await a.claim(X)
    assert a.cluster.leaving() == []
    a.cluster.locks.release(claimed.lock)
    assert a.cluster.leaving() == [X]
    await a.cluster.locks.batcher.settled()
    assert a.cluster.leaving() == []
    a.host.left.append(X)
    assert a.cluster.leaving() == [X]


async def agreed(place: PostgresEngine, asker: Node) -> None:
    """Wait until the asking node has read that the owner's session is ending."""
    await until(lambda: place.rows("SELECT answer FROM lock_requests") == [("ending",)])
    await looked(asker)


async def looked(asker: Node) -> None:
    """Wait until a node that waits for a lock has tried its claim once more."""
    statements = asker.cluster.locks.batcher.statistics().claim_statements
    await until(lambda: asker.cluster.locks.batcher.statistics().claim_statements >= statements + 2)


async def test_naming_a_session_takes_over_from_another_node_at_its_end(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    first = await a.claim(X, session="s1")
    a.host.gate = trio.Event()
    done: list[object] = []

    async def take_over() -> None:
        done.append(await b.claim(X, session="s2", resume="s1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await agreed(place, b)
        # Longer than the grace: a holder that is ending is not taken for dead.
        b.cluster.locks._limits = replace(STEADY, lease_grace_s=0.0)
        await looked(b)
        assert not done
        assert a.cluster.locks.mine(X) == first.lock
        a.host.gate.set()
    [claimed] = done
    assert claimed.lock.epoch == 2
    assert claimed.history == SessionHistory("s1", 1_000, 7)
    assert claimed.displaced == (a.cluster.node_id, "s1")
    assert a.cluster.locks.mine(X) is None
    assert a.host.told == []
    assert a.cluster.lease.epoch == 1


async def test_a_holder_that_does_not_end_in_time_keeps_the_identity(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    first = await a.claim(X, session="s1")
    a.host.gate = trio.Event()

    async def take_over() -> None:
        with refuses(Status.UNAVAILABLE):
            await b.claim(X, resume="s1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await agreed(place, b)
        b.cluster.locks._limits = replace(STEADY, lease_grace_s=0.0, ending_s=0.0)
    assert a.cluster.locks.mine(X) == first.lock
    a.host.gate.set()


async def test_a_session_resumes_its_history_on_another_node_after_it_has_ended(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    first = await a.claim(X, session="s1", connected_ms=100)
    a.cluster.locks.release(first.lock, SessionHistory("s1", 100, 0))
    second = await b.claim(X, session="s2", resume="s1", connected_ms=200)
    assert second.history == SessionHistory("s1", 100, 0)
    b.cluster.locks.release(second.lock, SessionHistory("s2", 100, 1))
    third = await a.claim(X, session="s3", resume="s1", connected_ms=300)
    assert third.history is None, "that session is not the last one"
    a.cluster.locks.release(third.lock, SessionHistory("s3", 300, 0))
    assert (await b.claim(X, session="s4", resume="s3")).history == SessionHistory("s3", 300, 0)


async def test_a_session_on_the_same_node_is_replaced_by_who_names_it(nodes: Nodes) -> None:
    a = await nodes.start()
    first = await a.claim(X, session="s1", connected_ms=100)
    second = await a.claim(X, session="s2", resume="s1", connected_ms=200)
    assert second.lock.epoch == 2
    assert second.history == SessionHistory("s1", 100, 0)
    assert not a.cluster.locks.release(first.lock), "the end of the old session leaves the new one alone"
    assert a.cluster.locks.mine(X) == second.lock


async def test_a_cancelled_claim_holds_nothing(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.claim, X)
        await trio.sleep(0)
        nursery.cancel_scope.cancel()
    with trio.fail_after(LONG_S):
        await a.cluster.locks.batcher.settled()
    assert a.cluster.locks.mine(X) is None
    await b.claim(X)


async def test_a_claim_that_is_cancelled_before_its_answer_leaves_no_request(
    nodes: Nodes, place: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await nodes.start(), await nodes.start()
    await a.claim(X)
    batcher = b.cluster.locks.batcher
    claim = batcher._claim
    with trio.CancelScope() as caller:

        async def claim_and_cancel(*args: Any) -> list[Any]:
            rows = await claim(*args)
            assert place.rows("SELECT count(*) FROM lock_requests") == [(1,)]
            caller.cancel()
            return rows

        monkeypatch.setattr(batcher, "_claim", claim_and_cancel)
        await b.claim(X)
    assert caller.cancelled_caught
    await batcher.settled()
    assert place.rows("SELECT count(*) FROM lock_requests") == [(0,)]


async def test_a_lock_unknown_to_its_node_is_free_when_another_node_asks(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    await a.claim(X)
    del a.cluster.locks._mine[X]  # as if the answer to the claim had been lost
    assert (await b.claim(X)).lock.epoch == 2
    await b.cluster.locks.batcher.settled()
    assert place.rows("SELECT count(*) FROM lock_requests") == [(0,)]


async def test_the_limit_of_a_workspace_is_that_of_the_cluster(nodes: Nodes) -> None:
    started = [await nodes.start(connections_of=lambda workspace: 5) for _ in range(3)]
    granted: list[object] = []
    refused: list[StatusError] = []

    async def claim(number: int) -> None:
        try:
            granted.append(await started[number % 3].claim(f"ag::lab::x::{number}"))
        except StatusError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(claim, number)
    assert len(granted) == 5
    assert {error.status for error in refused} == {Status.RESOURCE_EXHAUSTED}
    await started[0].claim("ag::other::x::1", workspace="other")
    await started[0].claim("wf::1", workspace="")


async def test_each_workspace_has_its_limit_and_the_newest_counts(nodes: Nodes) -> None:
    most = {"lab": 2, "other": 1}
    a, b = [await nodes.start(connections_of=lambda workspace: most.get(workspace, 0)) for _ in range(2)]
    granted: dict[str, int] = {}
    refused: list[tuple[Status, bool]] = []

    async def claim(node: Node, workspace: str, number: int) -> None:
        try:
            await node.claim(f"ag::{workspace}::x::{number}", workspace=workspace)
        except StatusError as error:
            refused.append((error.status, f"{most[workspace]} connections" in error.message))
        else:
            granted[workspace] = granted.get(workspace, 0) + 1

    async with trio.open_nursery() as nursery:
        for number in range(12):
            for workspace in ("lab", "other", "free"):
                nursery.start_soon(claim, (a, b)[number % 2], workspace, number)
    assert granted == {"lab": 2, "other": 1, "free": 12}
    most["lab"] = 3
    await claim(b, "lab", 100)
    await claim(a, "lab", 101)
    assert granted["lab"] == 3
    assert set(refused) == {(Status.RESOURCE_EXHAUSTED, True)}


async def test_claims_of_the_moment_are_one_statement(nodes: Nodes) -> None:
    a = await nodes.start()
    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(a.claim, f"ag::lab::x::{number}")
    statistics = a.cluster.locks.batcher.statistics()
    assert statistics.claims == 500
    assert statistics.claim_statements <= 5
    assert statistics.largest == 256


async def test_a_clean_exit_frees_everything_at_once(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    for number in range(50):
        await a.claim(f"ag::lab::x::{number}", session=f"s{number}", connected_ms=77)
    await nodes.stop(a)
    assert place.rows("SELECT count(*) FROM identity_locks WHERE ended_ms IS NULL") == [(0,)]
    for number in range(50):
        claimed = await b.claim(f"ag::lab::x::{number}", resume=f"s{number}")
        assert claimed.lock.epoch == 2
        assert claimed.history == SessionHistory(f"s{number}", 77, 0)
        assert claimed.displaced is None
    assert [one.node_id for one in await b.cluster.nodes.alive()] == [b.cluster.node_id]


async def test_what_ended_long_ago_is_forgotten(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    for number in range(20):
        claimed = await b.claim(f"ag::lab::x::{number}")
        b.cluster.locks.release(claimed.lock)
    await a.claim(X)
    await nodes.stop(b)
    await a.cluster.nodes.sweep()
    assert place.rows("SELECT count(*) FROM identity_locks") == [(20,)]
    day_ms = 25 * 3600 * 1000
    place.outside(
        f"UPDATE identity_locks SET ended_ms = ended_ms - {day_ms}; UPDATE nodes SET ended_ms = ended_ms - {day_ms}"
    )
    place.outside("INSERT INTO lock_requests VALUES ('ag::lab::gone::1', 99, 's', '', '', 1)")
    await a.cluster.nodes.sweep()
    assert place.rows("SELECT identity FROM identity_locks") == [(X,)]
    assert place.rows("SELECT node_id FROM nodes") == [(a.cluster.node_id,)]
    assert place.rows("SELECT count(*) FROM lock_requests") == [(0,)]


async def test_a_claim_that_cannot_be_written_costs_no_other_its_claim(nodes: Nodes) -> None:
    """Nor the releases that follow, nor the answers to those who ask."""
    a, b = await nodes.start(), await nodes.start()
    claimed: list[str] = []
    refused: list[str] = []

    async def claim(number: int) -> None:
        identity = f"ag::lab::x::{number}"
        sdk = "x\0y" if number == 17 else "python"
        try:
            await a.cluster.locks.claim(
                LockRequest(identity, f"s-{number}", "agent", 5, workspace="lab", client_sdk=sdk)
            )
            claimed.append(identity)
        except RefusedError:
            refused.append(identity)

    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            for number in range(41):
                nursery.start_soon(claim, number)
        assert (len(claimed), refused) == (40, ["ag::lab::x::17"])
        a.cluster.locks.batcher.release(Release("ag::lab::x::17", "s\0", 0))
        a.cluster.locks.batcher.answer("ag::lab::x::17", 0, "s\0", OwnerAnswer.ALIVE)
        a.cluster.locks.batcher.withdraw("ag::lab::x::17", "s\0")
        for identity in claimed:
            hold = a.cluster.locks.mine(identity)
            assert hold is not None
            a.cluster.locks.release(hold)
        await a.cluster.locks.batcher.settled()
        for identity in claimed[:3]:
            await b.claim(identity)
