"""When the task of an execution is forgotten, no table has anything of it."""

from __future__ import annotations

import pytest
import trio

from aether_trio.services.workflows.executions import advancing as executions
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.operations.past_operations import REPLAY
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import all_taken, client

Op = pb.WorkflowOperation
INNER = {"steps": [{"id": "say", "output": {"$expr": "trigger.n"}}]}
OUTER = {
    "steps": [
        {"id": "nap", "wait": "1s"},
        {
            "id": "paid",
            "wait": {"event": "paid", "key": "input.order", "equals": "trigger.order"},
            "depends_on": ["nap"],
        },
        {
            "id": "each",
            "for_each": {"items": {"$expr": "[1, 2]"}},
            "workflow": "inner",
            "input": {"n": {"$expr": "item"}},
            "depends_on": ["paid"],
        },
    ]
}


async def test_nothing_is_left_of_forgotten_executions(world: World) -> None:
    settings = {"workflow": {"engine": "embedded"}, "tasks": {"completed_retention_s": 60, "cancelled_retention_s": 60}}
    async with deadlock_is_an_error(), world.open(**settings) as core, client(core) as boss:
        await boss.create(INNER, "inner")
        await boss.create(OUTER, "outer")
        ids = [await boss.run({"order": number}, "outer") for number in range(2)]
        await trio.sleep(2)
        await boss.emit("paid", data={"order": 0})
        await all_taken(core, world)
        await boss.do(Op.CANCEL_EXECUTION, ids[1])
        assert (await boss.ended(ids[0]))["execution"]["Status"] == "completed"
        assert (await boss.ended(ids[1]))["execution"]["Status"] == "cancelled"
        query = world.databases["tasks"].query
        every = [row[0] for row in query("SELECT task_id FROM tasks")]
        assert len(every) == 4
        await trio.sleep(80)
        found = [
            (table, column) for table, column in text_columns(world) for one in every if has(world, table, column, one)
        ]
        assert found == []
        for table in ("workflow_kept_events", "workflow_timers", "workflow_steps", "workflow_history"):
            assert query(f"SELECT * FROM {table}") == []


def text_columns(world: World) -> list[tuple[str, str]]:
    """Return the columns of texts of all tables: (table, column)."""
    query = world.databases["tasks"].query
    if world.databases["tasks"].shared:
        return [
            (row[0], row[1])
            for row in query(
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_schema = current_schema() AND data_type = 'text'"
            )
        ]
    tables = [row[0] for row in query("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, name)
        for table in tables
        for name, kind in query(f"SELECT name, type FROM pragma_table_info('{table}')")
        if kind == "TEXT"
    ]


def has(world: World, table: str, column: str, text: str) -> bool:
    """Return whether a column has a text."""
    return bool(world.databases["tasks"].query(f"SELECT 1 FROM {table} WHERE {column} = $1 LIMIT 1", text))


async def test_a_long_history_is_forgotten_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "FORGOTTEN_ROWS", 20)
    monkeypatch.setattr(executions, "FEW_ENTRIES", 5)
    delete_part, parts = execution_rows.delete_part, list[int]()

    def noted(execution_id: str, most: int) -> Program[int]:
        parts.append((yield from delete_part(execution_id, most)))
        return parts[-1]

    monkeypatch.setattr(execution_rows, "delete_part", noted)
    settings = {"workflow": {"engine": "embedded"}, "tasks": {"completed_retention_s": 60}}
    async with deadlock_is_an_error(), world.open(**settings) as core, client(core) as boss:
        await boss.create(INNER, "inner")
        ids = [await boss.run({"n": number}, "inner") for number in range(3)]
        database = core.tasks.engine.database
        for one in ids:
            entries = [(one, number) for number in range(2, 51)]
            sql = "INSERT INTO workflow_history (execution_id, number, at_ms, entry) VALUES ($1, $2, 0, $3)"
            await database.executemany(sql, [(*entry, b"{}") for entry in entries])
            await database.execute("UPDATE workflow_executions SET entries = 50 WHERE execution_id = $1", one)
        await trio.sleep(80)
        for table in ("tasks", "workflow_executions", "workflow_steps", "workflow_history"):
            assert world.databases["tasks"].query(f"SELECT * FROM {table}") == []
        assert sum(parts) == 150
        assert max(parts) == 20


async def test_a_function_whose_history_goes_is_not_tried_again_with_the_rest_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "FORGOTTEN_ROWS", 4)
    monkeypatch.setattr(executions, "FEW_ENTRIES", 1)
    monkeypatch.setattr(executions, "AT_ONCE_MS", 60_000)
    settings = {"workflow": {"engine": "embedded"}, "tasks": {"cancelled_retention_s": 60}}
    async with (
        deadlock_is_an_error(),
        world.open(**settings) as core,
        client(core) as boss,
        client(core, "hand") as hand,
    ):
        await hand.do(120, "act", data={})
        one = await boss.run({}, "act")
        await hand.operate(one, pb.TaskOperation.CLAIM)
        steps = [{"do": "close", "step": f"s{number}", "outcome": "completed", "result": number} for number in range(9)]
        await hand.do(121, one, data={"assignment": 1, "after": 0, "do": steps})
        await boss.operate(one, pb.TaskOperation.CANCEL)
        assert [entry["number"] for entry in await boss.do(105, one)] == [*range(1, 12)]
        await trio.sleep(90)  # a part of it is deleted
        query = world.databases["tasks"].query
        assert [number for (number,) in query("SELECT number FROM workflow_history ORDER BY number")] == [*range(5, 12)]
        for after in ("", "6"):
            assert "its history is being deleted" in (await boss.ask(105, one, after)).error
        assert "is being deleted" in (await boss.ask(104, one)).error
        assert "is being deleted" in (await boss.operate(one, pb.TaskOperation.RETRY)).error
        await trio.sleep(1)
        assert (await boss.execution(one))["execution"]["Status"] == "cancelled"
        assert (await boss.task(one)).status == pb.TASK_STATUS_CANCELLED
        assert len(query("SELECT number FROM workflow_history")) == 7
        await trio.sleep(150)
        assert query("SELECT * FROM workflow_history") == query("SELECT * FROM workflow_executions") == []


async def test_a_history_that_has_gone_does_not_replay(world: World) -> None:
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.create(INNER, "inner")
        one = await boss.run({"n": 1}, "inner")
        await boss.ended(one)
        assert (await boss.do(REPLAY, one, data={"document": {"id": "inner", **INNER}}))["divergence"] is None
        await core.tasks.engine.database.execute("DELETE FROM workflow_history WHERE execution_id = $1", one)
        answer = await boss.ask(REPLAY, one, data={"document": {"id": "inner", **INNER}})
        assert "its history is being deleted" in answer.error
