"""A page of tasks costs the gateway what it sends, however large the tasks are."""

from __future__ import annotations

import tracemalloc
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.limits import KIB, MIB
from aether_trio.services.tasks.handlers import query
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect
from tests.services.tasks.peers import answer, create, listed

TASKS = 200
METADATA = {"note": "x" * 200 * KIB}


async def test_a_page_of_large_tasks_is_not_read_beyond_what_is_sent(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        made = [(await create(creator, metadata=METADATA)).task_id for _ in range(TASKS)]
        seen: list[str] = []
        token = None
        while token != "":
            wanted = pb.TaskFilter(workspace="w", limit=1000, page_token=token)
            asked = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=wanted, request_id=f"list-{len(seen)}")
            tracemalloc.start()
            try:
                creator.send(pb.UpstreamMessage(task_query=asked))
                page: pb.TaskQueryResponse = await answer(creator, "task_query", asked.request_id)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert page.success, page.error
            assert peak < 24 * MIB
            seen += [task.task_id for task in page.tasks]
            token = page.next_page_token
        assert sorted(seen) == sorted(made)


async def test_many_large_pages_at_a_time_delay_no_other_client(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page is written at a time, in steps."""
    monkeypatch.setattr(query, "STEP_BYTES", 5 * KIB)
    shown: list[Any] = []
    show = query.show

    def noted(into: pb.TaskInfo, task: Any, **named: Any) -> pb.TaskInfo:
        shown.append(named)
        return show(into, task, **named)

    monkeypatch.setattr(query, "show", noted)

    async def look(peer: MemoryLink) -> None:
        assert len(await listed(peer, workspace="w", limit=1000)) == 50

    async with AsyncExitStack() as stack:
        creator = await stack.enter_async_context(connect(core, agent("w", "c", "1")))
        for number in range(50):
            await create(creator, metadata={"note": f"{number}" + "x" * 4 * KIB})
        peers = [await stack.enter_async_context(connect(core, agent("w", "reader", f"{n}"))) for n in range(10)]
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(look, peer)
            before = most = 0
            while len(shown) < 500:
                await trio.lowlevel.checkpoint()
                before, most = len(shown), max(most, len(shown) - before)
            assert most <= 2, "in one turn of the event loop"
        assert len(shown) == 500
