"""A page of tasks costs the gateway what it sends, however large the tasks are."""

from __future__ import annotations

import tracemalloc

from aether_trio.gateway.core import Core
from aether_trio.model.limits import KIB, MIB
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect
from tests.services.tasks.peers import answer, create

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
