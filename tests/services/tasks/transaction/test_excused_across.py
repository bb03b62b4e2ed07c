"""Workers are excused when no gateway was up, not because another node starts."""

from __future__ import annotations

import trio

from aether_trio.gateway.core import Core, open_core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.services.tasks.peers import Op, create, operate

LONG_S = 120.0


async def missing(core: Core) -> tuple[int, int]:
    """Since when the worker of the only task is missing, and until when it is excused."""
    query = "SELECT disconnected_ms, excused_ms FROM tasks WHERE disconnected_ms > 0"
    while not (found := await core.tasks.engine.database.fetch(query)):
        await trio.sleep(0.02)
    since_ms, excused_ms = found[0]
    return since_ms, excused_ms


async def test_a_node_that_joins_others_excuses_no_worker(postgres_engine: PostgresEngine) -> None:
    settings = settings_for_tests(storage={"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema})
    with trio.fail_after(LONG_S):
        async with open_core(settings) as one:
            async with connect(one, agent("w", "i", "1")) as worker:
                made = await create(worker, assignment_mode=pb.SELF_ASSIGN)
                assert (await operate(worker, Op.CLAIM, made.task_id)).success
                worker.cut()
                before = await missing(one)
            async with open_core(settings) as two:
                assert not await two.tasks.engine.nodes.is_only_node()
                assert await missing(two) == before
            assert await missing(one) == before
        async with open_core(settings) as alone:
            assert await alone.tasks.engine.nodes.is_only_node()
            since_ms, excused_ms = await missing(alone)
            assert since_ms > before[0]
            assert excused_ms > since_ms
