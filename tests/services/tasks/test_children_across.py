"""Children that are made and ended on another node than the one that their parent is followed on."""

from __future__ import annotations

import trio

from aether_trio.testing.memory import MemoryLink
from tests.helpers.core import agent, connect
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.tasks.peers import Op, operate
from tests.services.tasks.test_subscriptions import child_of, of, parent_and_children, seen, subscribe

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
