"""A node loses its lease, or stands still until it counts as dead, and goes on.

What it did meanwhile has no effect on those who hold its identities now; and clients that are still
connected, and were not told to leave, keep all that they had.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest
import trio

from aether_trio.model.errors import Status
from aether_trio.storage.base import CommitUnknown
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import NEVER_S, Fabric, Gateway, join, open_fabric, until
from tests.cluster.across.leases import declare_dead, without_lease
from tests.helpers.core import agent, barrier, message_to, payloads, switch_to, task, user
from tests.helpers.engines import PostgresEngine
from tests.services.agents.ops import register, starter
from tests.services.tasks.peers import Op, create, get, given, operate

X = "ag::w::x::1"
OF_POOL = pb.CreateTaskRequest(
    task_type="t", workspace="w", assignment_mode=pb.POOL, target_implementation="i", request_id="r"
)
FIVE = [b"%d" % number for number in range(5)]


async def follow(gateway: Gateway, topic: str, upto: int) -> None:
    """Wait until this node has given its listeners everything up to that offset."""
    await until(lambda: gateway.core.log.topics.ensure(topic).tail >= upto)


# -- positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("aware", [True, False])
async def test_what_was_delivered_to_a_former_holder_comes_to_the_holder(
    fabric: Fabric, postgres_engine: PostgresEngine, aware: bool
) -> None:
    one, two = await fabric.start_many(2)
    former, other = await one.join(agent("w", "x", "1")), await one.join(agent("w", "other", "1"))
    sender = await two.join(agent("w", "s", "1"))
    async with without_lease(one, postgres_engine, aware=aware), join(two, agent("w", "x", "1")) as holder:
        holder.pause()
        sender.send(*(message_to(X, payload) for payload in FIVE), message_to("ag::w::other::1", b"kept"))
        await barrier(sender)
        await follow(one, X, 5)
        await follow(one, "ag::w::other::1", 1)
        assert payloads(former) == ([] if aware else FIVE)
        assert payloads(other) == ([] if aware else [b"kept"])
        holder.cut()
    assert (await former.wait_end()).status is Status.CANCELLED
    await until(lambda: payloads(other) == [b"kept"])
    await one.core.log.cursors.save()
    async with join(two, agent("w", "x", "1")) as holder:
        assert await holder.take(5) == FIVE
    # Who was not taken over has a position.
    assert other.ended is None


async def test_a_node_that_does_not_know_of_its_lease_reads_what_is_pushed(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop, pushes in its sockets may be for other owners of its identities."""
    monkeypatch.setattr("aether_trio.log.group_writers.QUICK_S", math.inf)
    one, two = await fabric.start_many(2)
    receiver, sender = await one.join(agent("w", "x", "1")), await two.join(agent("w", "s", "1"))
    probing = trio.Event()

    async def stuck(_connection: Any) -> bool:
        probing.set()
        await trio.sleep_forever()
        raise AssertionError

    lease = one.cluster.lease
    monkeypatch.setattr(lease, "_probe", stuck)
    await probing.wait()
    monkeypatch.setattr(lease, "_seen_held_s", -math.inf)
    for payload in FIVE:
        sender.send(message_to(X, payload))
        assert await receiver.take(1) == [payload]
    done = one.core.log.statistics()
    assert (done.pushed_messages, done.remote_messages) == (0, 5)
    await until(lambda: two.tails.statistics().notifies >= 5)  # they were pushed


# -- what others delete for a node that they take for dead -----------------------------------------


@asynccontextmanager
async def taken_for_dead(gateway: Gateway, by: Gateway, engine: PostgresEngine, *, aware: bool) -> AsyncIterator[None]:
    """Let other nodes do all that they do for a dead node, and forget its interest."""
    node_id = gateway.cluster.node_id
    async with without_lease(gateway, engine, aware=aware):
        await declare_dead(gateway, by)
        await by.core.tasks.engine.recover()
        for table in ("topic_interest", "ephemeral_interest"):
            await by.cluster.nodes.fetch(f"DELETE FROM {table} WHERE node_id = $1", node_id)
        yield


@pytest.mark.parametrize("aware", [True, False])
async def test_workers_of_a_revived_node_get_work(fabric: Fabric, postgres_engine: PostgresEngine, aware: bool) -> None:
    one, two = await fabric.start_many(2)
    pooled, targeted = await one.join(agent("w", "i", "1")), await one.join(agent("w", "t", "1"))
    boss = await two.join(agent("w", "boss", "1"))
    first = (await create(boss)).task_id
    await until(lambda: first in given(pooled))
    assert (await operate(pooled, Op.CLAIM, first)).success
    async with taken_for_dead(one, two, postgres_engine, aware=aware):
        pass
    pool = (await create(boss)).task_id
    own = (await create(boss, assignment_mode=pb.TARGETED, target_agent_id="ag::w::t::1")).task_id
    await until(lambda: pool in given(pooled) and own in given(targeted))
    assert (given(pooled).count(pool), given(targeted).count(own)) == (1, 1)
    # It goes on with what it had begun.
    assert (await operate(pooled, Op.COMPLETE, first)).success
    assert (await operate(pooled, Op.CLAIM, pool)).success
    await until(lambda: given(pooled).count(first) == 1)
    # What the node's own participants create gets there as well.
    self_made = (await create(targeted)).task_id
    await until(lambda: self_made in given(pooled))


async def test_what_others_gave_its_workers_meanwhile_is_told(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await fabric.start_many(2)
    worker, starts = await one.join(agent("w", "i", "1")), await one.join(starter("1", "process"))
    boss = await two.join(agent("w", "boss", "1"))
    await register(starts, "echo")
    async with without_lease(one, postgres_engine):
        one_task = (await create(boss)).task_id
        boss.send(message_to("ag::w::echo::1", b"wake"))
        await until(lambda: ("starting",) in rows(postgres_engine, "SELECT status FROM tasks"))
        await declare_dead(one, two)
    await until(lambda: given(worker) == [one_task])
    await until(lambda: len(given(starts)) == 1)


async def test_what_was_being_given_when_a_lease_ended_is_told(
    fabric: Fabric, postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assignment is committed under the old lease, its effects under the next one."""
    one, two = await fabric.start_many(2)
    worker, boss = await one.join(agent("w", "i", "1")), await one.join(agent("w", "boss", "1"))
    engine = one.core.tasks.engine
    run_keyed = engine.database.run_keyed
    committed, renewed = trio.Event(), trio.Event()

    async def late(*given: Any, **options: Any) -> Any:
        result = await run_keyed(*given, **options)
        committed.set()
        await renewed.wait()
        return result

    monkeypatch.setattr(engine.database, "run_keyed", late)
    boss.send(pb.UpstreamMessage(create_task=OF_POOL))
    await committed.wait()
    async with without_lease(one, postgres_engine):
        await declare_dead(one, two)
    await until(lambda: rows(postgres_engine, "SELECT DISTINCT node FROM task_workers") == [(engine.nodes.node,)])
    renewed.set()
    await until(lambda: len(given(worker)) == 1)


async def test_what_was_in_doubt_when_a_lease_ended_is_told(
    fabric: Fabric, postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the node looks for untold assignments, it has no workers yet."""
    one, two = await fabric.start_many(2)
    worker, boss = await one.join(agent("w", "i", "1")), await one.join(agent("w", "boss", "1"))
    engine = one.core.tasks.engine
    monkeypatch.setattr(two.core.tasks.engine, "recover", trio.lowlevel.checkpoint)
    run_keyed = engine.database.run_keyed
    committed, lost = trio.Event(), trio.Event()

    async def unanswered(*given: Any, **options: Any) -> Any:
        await run_keyed(*given, **options)
        committed.set()
        await lost.wait()
        raise CommitUnknown("the connection was lost")

    monkeypatch.setattr(engine.database, "run_keyed", unanswered)
    boss.send(pb.UpstreamMessage(create_task=OF_POOL))
    await committed.wait()
    async with without_lease(one, postgres_engine):
        await declare_dead(one, two)
        lost.set()
        await until(lambda: len(boss.waiting("create_task")) == 1)
    await until(lambda: rows(postgres_engine, "SELECT DISTINCT node FROM task_workers") == [(engine.nodes.node,)])
    await until(lambda: len(given(worker)) == 1)


async def test_an_orchestrator_of_a_revived_node_starts_agents(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await fabric.start_many(2)
    starts, boss = await one.join(starter("1", "process")), await two.join(agent("w", "boss", "1"))
    await register(starts, "echo")
    boss.send(message_to("ag::w::echo::1", b"wake"))
    asked = (await starts.next("task_assignment")).task_assignment
    echo = await one.join(agent("w", "echo", "1", credentials={"token": asked.launch_params["auth_token"]}))
    assert await echo.take(1) == [b"wake"]
    running = [("running", 0)]
    state = "SELECT status, CASE WHEN disconnected_ms > 0 THEN 1 ELSE 0 END FROM tasks"
    await until(lambda: rows(postgres_engine, state) == running)
    async with taken_for_dead(one, two, postgres_engine, aware=False):
        assert rows(postgres_engine, state) == [("running", 1)]
    await until(lambda: rows(postgres_engine, state) == running)
    boss.send(message_to("ag::w::echo::2", b"wake"))
    await until(lambda: len(given(starts)) == 1)


async def test_who_follows_a_task_or_listens_there_goes_on_hearing_of_it(postgres_engine: PostgresEngine) -> None:
    with mock.patch("aether_trio.services.tasks.engine.CHECK_S", NEVER_S):
        async with open_fabric(postgres_engine) as fabric:
            one, two = await fabric.start_many(2)
            watcher, listener = await one.join(agent("w", "watcher", "1")), await one.join(user("u", "1"))
            worker = await two.join(agent("w", "i", "1"))
            task_id = (await create(watcher)).task_id
            op = pb.TaskSubscriptionOperation(op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=task_id)
            watcher.send(pb.UpstreamMessage(task_subscription_op=op))
            assert (await watcher.next("task_subscription_response")).task_subscription_response.success
            listener.send(switch_to("w"))
            await barrier(listener)
            async with taken_for_dead(one, two, postgres_engine, aware=True):
                pass
            await until(
                lambda: rows(postgres_engine, "SELECT count(*) FROM task_watchers WHERE node LIKE '%.2'") == [(1,)]
            )
            for name, table in (("ag::w::watcher::1", "topic_interest"), ("pg::us::u", "ephemeral_interest")):
                await until(
                    lambda n=name, t=table: rows(postgres_engine, f"SELECT 1 FROM {t} WHERE topic = '{n}'") != []
                )
            await until(lambda: task_id in given(worker))
            assert (await operate(worker, Op.CLAIM, task_id)).success
            await watcher.next("task_event")
            worker.send(
                message_to("ag::w::watcher::1", b"hello"),
                pb.UpstreamMessage(progress=pb.ProgressReport(task_id=task_id, state="running")),
            )
            assert await watcher.take(1) == [b"hello"]
            await until(lambda: len(listener.waiting("progress_update")) >= 1)
            assert (await get(worker, task_id)).task_id == task_id


async def test_work_queues_of_a_revived_node_go_on(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await fabric.start_many(2)
    worker, boss = await one.join(task("w", "resize")), await two.join(agent("w", "boss", "1"))
    async with taken_for_dead(one, two, postgres_engine, aware=False):
        boss.send(message_to("tb::w::resize", b"1"))
        await barrier(boss)
    boss.send(message_to("tb::w::resize", b"2"))
    got = await worker.take(2)
    assert sorted(got) == [b"1", b"2"]


def rows(engine: PostgresEngine, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in engine.rows(sql)]
