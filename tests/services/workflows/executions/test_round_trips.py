"""How many round trips executions take on PostgreSQL: a cost without noise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core, open_core
from aether_trio.storage.postgres.lost_commits import IdentifiedConnection
from aether_trio.storage.postgres.merged_writes import COMMON
from tests.helpers.core import settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import LONG_S, two_nodes
from tests.services.workflows.executions.test_interleaved_ends import CHAIN
from tests.services.workflows.helpers import Client, Op, TaskOp, client, logged


@asynccontextmanager
async def one_node(engine: PostgresEngine) -> AsyncIterator[Core]:
    storage = {"database": engine.server.dsn(), "schema": engine.schema}
    with trio.fail_after(LONG_S):
        async with open_core(settings_for_tests(storage=storage, workflow={"engine": "embedded"})) as core:
            yield core


class Trips:
    """The statements that transactions on tasks have sent, each of them a round trip."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sent: dict[int, list[str]] = {}
        for name in ("execute", "fetch", "fetchmany", "executemany"):
            monkeypatch.setattr(IdentifiedConnection, name, self._noted(name), raising=False)

    def _noted(self, name: str) -> Any:
        method = getattr(IdentifiedConnection, name)

        async def noted(connection: Any, sql: str, *args: Any) -> Any:
            self._sent.setdefault(id(connection), []).append(sql)
            return await method(connection, sql, *args)

        return noted

    def taken(self) -> list[int]:
        """Return how many each transaction on tasks took, since the last call."""
        found: list[list[str]] = []
        for sent in self._sent.values():
            for sql in sent:
                if sql.startswith("BEGIN"):
                    found.append([])
                if found:
                    found[-1].append(sql)
        self._sent.clear()
        writes = ("UPDATE tasks SET status", "INSERT INTO tasks ")
        return [len(one) for one in found if any(write in sql for sql in one for write in writes)]


async def test_the_round_trips_of_an_execution(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = Trips(monkeypatch)
    async with one_node(postgres_engine) as core, client(core) as boss, client(core, "hand") as hand:
        await boss.create({"name": "flow", "steps": CHAIN[:1]})
        found: list[list[int]] = []
        for number in range(COMMON + 5):  # by then their statements have come often
            trips.taken()
            await boss.run({"n": number})
            task = (await hand.link.next("task_assignment")).task_assignment
            taken = trips.taken()
            for op in (TaskOp.CLAIM, TaskOp.COMPLETE):
                assert (await hand.operate(task.task_id, op)).success
                taken += trips.taken()
            found.append(taken)
    # Start: BEGIN, the worker, all rows, COMMIT. CLAIM: BEGIN, the task, both rows, COMMIT.
    # COMPLETE: BEGIN, the task with all of its execution, the worker, all rows, COMMIT. Some of
    # them may share a transaction with other work of the node.
    assert [4, 4, 5] in found


@pytest.mark.parametrize("failing", [False, True])
async def test_the_log_of_an_execution_ends_with_its_own_end(postgres_engine: PostgresEngine, failing: bool) -> None:
    """The end of its last step comes before, in the same transaction."""
    steps = [CHAIN[0], {**CHAIN[0], "id": "other"}] if failing else CHAIN[:1]
    async with one_node(postgres_engine) as core, client(core) as boss, client(core, "hand") as hand:
        await boss.create({"name": "flow", "steps": steps})
        for number in range(3):
            execution_id = await boss.run({"n": number})
            tasks = [(await hand.link.next("task_assignment")).task_assignment.task_id for _ in steps]
            assert (await hand.operate(tasks[0], TaskOp.CLAIM)).success
            assert (await hand.operate(tasks[0], TaskOp.FAIL if failing else TaskOp.COMPLETE)).success
            left = await core.tasks.engine.database.fetch(
                "SELECT id FROM task_child_events WHERE task_id = $1", execution_id
            )
            assert not left
            found = await logged(core, execution_id)
            assert sorted(found[:-1]) == sorted((word, task) for word in ("spawned", "completed") for task in tasks)
            assert found[-1] == (f"TASK_STATUS_{'FAILED' if failing else 'COMPLETED'}", execution_id)


async def test_a_start_runs_the_version_that_is_the_newest_by_its_commit(postgres_engine: PostgresEngine) -> None:
    """Each node remembers which one that was, and another one may have changed it."""

    def named(step: str) -> dict[str, Any]:
        return {"name": "flow", "steps": [{**CHAIN[0], "id": step}]}

    async def started(boss: Client) -> int:
        found = await boss.execution(await boss.run({"n": 1}))
        version: int = found["execution"]["WorkflowVersion"]
        return version

    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as (one, two),
        client(one) as here,
        client(two, "chief") as there,
    ):
        await here.create(named("first"))
        assert [await started(here), await started(here), await started(there)] == [1, 1, 1]
        await there.create(named("second"), version=2)
        assert [await started(here), await started(here), await started(there)] == [2, 2, 2]
        await there.do(Op.DELETE_WORKFLOW, "flow")
        refused = await here.ask(100, "flow", data={})
        assert (refused.success, "not found" in refused.error) == (False, True)
        await there.create(named("third"), version=3)
        assert [await started(here), await started(there)] == [3, 3]


async def test_an_input_that_a_newer_version_takes_is_not_refused(postgres_engine: PostgresEngine) -> None:
    def taking(kind: str) -> dict[str, Any]:
        return {"name": "flow", "inputs": {"n": kind}, "steps": CHAIN[:1]}

    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as (one, two),
        client(one) as here,
        client(two, "chief") as there,
    ):
        await here.create(taking("integer"))
        await here.run({"n": 1})
        assert not (await here.ask(100, "flow", data={"n": "one"})).success
        await here.run({"n": 2})
        await there.create(taking("string"), version=2)
        await here.run({"n": "one"})
