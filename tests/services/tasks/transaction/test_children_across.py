"""Children are created and ended on another node than their parent's subscriber."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, pump
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.tasks.delivery.test_event_subscriptions import child_of, of, parent_and_children, seen, subscribe
from tests.services.tasks.peers import Op, create, operate

BEFORE, AFTER = 3, 3


async def make(peer: MemoryLink, parent: str, made: list[str], stop: trio.Event) -> None:
    while not stop.is_set() or len(made) < BEFORE + AFTER:
        made.append(await child_of(peer, parent))


async def test_no_child_made_on_another_node_while_it_begins_is_missed(postgres_engine: PostgresEngine) -> None:
    async with (
        two_nodes(postgres_engine) as (one, two),
        connect(one, agent("w", "c", "1")) as peer,
        connect(two, agent("w", "c", "2")) as other,
    ):
        parent, _ = await parent_and_children(peer, 1)
        made: list[str] = []
        begun = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make, peer, parent, made, begun)
            while len(made) < BEFORE:
                await trio.sleep(0.01)
            assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=1)).success
            begun.set()
        for task_id in made:
            for op in (Op.CLAIM, Op.COMPLETE):
                assert (await operate(peer, op, task_id)).success
        wanted = {(task_id, word) for task_id in made for word in ("spawned", "completed")}
        while (
            not {(e.child_lifecycle.child_task_id, e.child_lifecycle.lifecycle) for e in of(seen(other), parent)}
            >= wanted
        ):
            await trio.sleep(0.02)
        told = [(e.child_lifecycle.child_task_id, e.child_lifecycle.lifecycle) for e in of(seen(other), parent)]
        assert len(told) == len(set(told)) == len(wanted) + 1
        for task_id in made:
            assert told.index((task_id, "spawned")) < told.index((task_id, "completed"))
            while len(of(seen(other), task_id)) < 2:
                await trio.sleep(0.02)
            assert [e.status_changed.to_status for e in of(seen(other), task_id)] == [2, 3]


async def test_nothing_stays_of_a_subscription_whose_session_ends_while_it_is_written(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(postgres_engine) as (one, two), connect(two, agent("w", "c", "1")) as creator:
        task_id = (await create(creator)).task_id
        database = one.tasks.engine.database
        run, held, go_on, written = database.run, trio.Event(), trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery, connect(one, agent("w", "c", "2")) as follower:
            await barrier(follower)
            await one.tasks.engine.writes.flush()

            async def late(program: Any, **options: Any) -> Any:
                """The first one is written though its caller has gone."""
                monkeypatch.setattr(database, "run", run)
                answers: list[Any] = []

                async def write() -> None:
                    await go_on.wait()
                    answers.append(await run(program, **options))
                    written.set()

                nursery.start_soon(write)
                held.set()
                await written.wait()
                return answers[0]

            monkeypatch.setattr(database, "run", late)
            sub = pb.TaskSubscriptionOperation(op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=task_id)
            follower.send(pb.UpstreamMessage(task_subscription_op=sub))
            await held.wait()
            follower.cut()
            while one.registry.holder("ag::w::c::2") is not None:
                await trio.sleep(0.01)
            await pump(100)
            go_on.set()
            await written.wait()
            await one.tasks.engine.writes.flush()
            assert await database.fetch("SELECT COUNT(*) FROM task_watchers") == [(0,)]
