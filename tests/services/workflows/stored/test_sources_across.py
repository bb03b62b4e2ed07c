"""Events of the gateway on two nodes: what was applied on one counts on the other."""

from __future__ import annotations

import trio

from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.workflows.events.test_task_events import APPLY, create, rule
from tests.services.workflows.helpers import client, worker


async def test_a_rule_of_one_node_takes_the_next_task_of_the_other(postgres_engine: PostgresEngine) -> None:
    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as (one, two),
        client(one) as boss,
        client(two, "other") as other,
        worker(two, "hand", lambda task: None),
    ):
        for number in range(3):
            await boss.do(APPLY, data={"documents": [rule("task.completed", f"rule{number}")]})
            await create(other)
            expected = (number + 1) * (number + 2) // 2
            while len(await boss.tasks(workspace="w", task_type="seen")) < expected:
                await trio.sleep(0.05)
        await trio.sleep(0.5)
        assert len(await boss.tasks(workspace="w", task_type="seen")) == expected
