"""A request that an ended session left unanswered is over before its successor.

The successor may be on any node.

The way of a node to PostgreSQL stalls while it writes for a session: the session ends, its client
comes back on another node or on the same one, and what it writes there is what stays.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from aether_trio.devtools.fault_proxy import FaultProxy, ProxiedConnection, open_fault_proxy
from aether_trio.session.session import Session
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Gateway, join, open_fabric, until
from tests.helpers.core import agent
from tests.helpers.engines import PostgresEngine, open_postgres_engine
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import open_postgres_session

Kv = pb.KVOperation
Checkpoint = pb.CheckpointOperation

LONG_ENOUGH_S = 2.0
"""For a successor that does not wait to have written, on most machines; on another one the test
sees less.
"""


@pytest.fixture
def tcp_engine(tcp_server: PostgresServer) -> Iterator[PostgresEngine]:
    with open_postgres_session(tcp_server.dsn()) as session, open_postgres_engine(tcp_server, session) as opened:
        yield opened


@asynccontextmanager
async def two_nodes(engine: PostgresEngine) -> AsyncIterator[tuple[FaultProxy, Gateway, Gateway]]:
    """The first one reaches the database through the proxy."""
    async with open_fault_proxy(f"127.0.0.1:{engine.server.port}") as proxy, open_fabric(engine) as fabric:
        dsn = engine.server.dsn(port=int(proxy.address.rpartition(":")[2]))
        one, two = await fabric.start(storage={"database": dsn}), await fabric.start()
        try:
            yield proxy, one, two
        finally:
            release(*proxy.open.values())


def release(*connections: ProxiedConnection) -> None:
    for connection in connections:
        connection.upstream.release()
        connection.downstream.release()


def stall_writers(proxy: FaultProxy, gateway: Gateway) -> list[ProxiedConnection]:
    """What this node writes over now does not arrive; what is opened later does."""
    pool = gateway.core.kv._db._server.writers  # type: ignore[attr-defined]
    ports = {one._transport.get_extra_info("sockname")[1] for one, _ in pool._idle}
    stalled = [one for one in proxy.open.values() if one._client.getpeername()[1] in ports]
    assert stalled
    for one in stalled:
        one.upstream.stall()
        one.downstream.stall()
    return stalled


def in_use(gateway: Gateway) -> int:
    return len(gateway.core.kv._db._server.writers.in_use)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Slot:
    """What a session writes and reads: a key or a checkpoint."""

    write: Callable[[bytes], dict[str, Any]]
    read: dict[str, Any]
    answer: str
    value: str


SLOTS = {
    "key": Slot(
        lambda value: {"kv_op": Kv(op=Kv.PUT, scope=Kv.GLOBAL, key="key", value=value)},
        {"kv_op": Kv(op=Kv.GET, scope=Kv.GLOBAL, key="key")},
        "kv",
        "value",
    ),
    "checkpoint": Slot(
        lambda value: {"checkpoint_op": Checkpoint(op=Checkpoint.SAVE, key="k", data=value)},
        {"checkpoint_op": Checkpoint(op=Checkpoint.LOAD, key="k")},
        "checkpoint",
        "data",
    ),
}


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another node", "the same node"])
@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
async def test_what_an_ended_session_wrote_is_not_written_after_what_its_successor_writes(
    tcp_engine: PostgresEngine, slot: Slot, elsewhere: bool
) -> None:
    async with two_nodes(tcp_engine) as (proxy, one, two), join(one, agent("w", "a", "1")) as first:
        assert (await first.ask(slot.answer, **slot.write(b"before"))).success
        stalled = stall_writers(proxy, one)
        first.send(pb.UpstreamMessage(**slot.write(b"first")))
        await until(lambda: in_use(one) > 0)
        done = trio.Event()

        async def come_back() -> None:
            hello = agent("w", "a", "1", resume_session_id=first.ack.session_id)
            async with join(two if elsewhere else one, hello) as second:
                assert (await second.ask(slot.answer, **slot.write(b"second"))).success
                done.set()
                release(*stalled)
                await until(lambda: in_use(one) == 0)
                assert getattr(await second.ask(slot.answer, **slot.read), slot.value) == b"second"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            with trio.move_on_after(LONG_ENOUGH_S):
                await done.wait()
            release(*stalled)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another node", "the same node"])
async def test_a_state_that_an_ended_session_saved_replaces_none_of_its_successor(
    tcp_engine: PostgresEngine, elsewhere: bool
) -> None:
    async with two_nodes(tcp_engine) as (proxy, one, two), join(one, agent("w", "a", "1")) as first:
        create = pb.CreateTaskRequest(task_type="t", workspace="w", request_id="c", assignment_mode=pb.SELF_ASSIGN)
        task_id = (await first.ask("create_task", create_task=create)).task_id
        claim = pb.TaskOperation(op=pb.TaskOperation.CLAIM, task_id=task_id)
        assert (await first.ask("task_op", task_op=claim)).success
        key = f"_task:{task_id}"
        stalled = stall_writers(proxy, one)
        first.send(pb.UpstreamMessage(checkpoint_op=Checkpoint(op=Checkpoint.SAVE, key=key, data=b"first")))
        await until(lambda: in_use(one) > 0)
        done = trio.Event()

        async def come_back() -> None:
            hello = agent("w", "a", "1", resume_session_id=first.ack.session_id)
            async with join(two if elsewhere else one, hello) as second:
                save = Checkpoint(op=Checkpoint.SAVE, key=key, data=b"second")
                answer = await second.ask("checkpoint", checkpoint_op=save)
                assert answer.success, answer.error
                done.set()
                release(*stalled)
                await until(lambda: in_use(one) == 0)
                load = Checkpoint(op=Checkpoint.LOAD, key=key)
                assert (await second.ask("checkpoint", checkpoint_op=load)).data == b"second"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            with trio.move_on_after(LONG_ENOUGH_S):
                await done.wait()
            release(*stalled)


def stall_at_commit(proxy: FaultProxy, gateway: Gateway, *, answers_only: bool) -> list[ProxiedConnection]:
    """The next group's COMMIT, or only its answer, does not come through."""
    writer = gateway.core.kv._db.writer  # type: ignore[attr-defined]
    drive_all = writer._drive_all
    stalled: list[ProxiedConnection] = []

    async def drive(connection: Any, jobs: Any, *, isolated: bool) -> None:
        await drive_all(connection, jobs, isolated=isolated)
        if stalled:
            return
        port = connection._transport.get_extra_info("sockname")[1]
        for one in proxy.open.values():
            if one._client.getpeername()[1] == port:
                one.downstream.stall()
                if not answers_only:
                    one.upstream.stall()
                stalled.append(one)

    writer._drive_all = drive
    return stalled


@pytest.mark.parametrize("answers_only", [True, False], ids=["the answer", "the commit"])
async def test_an_increment_without_its_answer_counts_once(tcp_engine: PostgresEngine, answers_only: bool) -> None:
    async with two_nodes(tcp_engine) as (proxy, one, _), join(one, agent("w", "a", "1")) as peer:
        stalled = stall_at_commit(proxy, one, answers_only=answers_only)
        for expected in (1, 2):
            op = Kv(op=Kv.INCREMENT, scope=Kv.GLOBAL, key="n", request_id="r")
            answer = await peer.ask("kv", kv_op=op)
            assert (answer.success, answer.counter_value) == (True, expected)
            assert len(stalled) == 1
            release(*stalled)


async def test_progress_of_an_ended_session_is_written_before_its_successor_begins(tcp_engine: PostgresEngine) -> None:
    """No client waits for it: the gateway writes it later."""
    async with two_nodes(tcp_engine) as (proxy, one, two), join(one, agent("w", "a", "1")) as first:
        create = pb.CreateTaskRequest(task_type="t", workspace="w", request_id="c", assignment_mode=pb.SELF_ASSIGN)
        task_id = (await first.ask("create_task", create_task=create)).task_id
        stalled = stall_writers(proxy, one)
        first.send(pb.UpstreamMessage(progress=pb.ProgressReport(task_id=task_id, state="first")))
        session = one.core.registry.holder("ag::w::a::1")
        assert session is not None
        await until(lambda: session.pending is not None and session.pending.count > 0)
        hello = agent("w", "a", "1", resume_session_id=first.ack.session_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_release_soon, stalled, session)
            async with join(two, hello) as second:
                assert session.pending is not None
                assert session.pending.count == 0
                second.finish()


async def _release_soon(stalled: list[ProxiedConnection], session: Session) -> None:
    await session.wait_detached()
    release(*stalled)
