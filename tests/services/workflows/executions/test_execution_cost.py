"""How many statements an execution takes: a cost without the noise of a clock."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.storage.base import Statement
from aether_trio.storage.sqlite import statements
from tests.helpers.core import deadlock_is_an_error, open_world
from tests.helpers.direct import SqliteStore
from tests.services.workflows.helpers import asked, client, worker

CHAIN = ("one", "two", "three")


async def test_a_chain_of_three_steps_takes_few_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    run_statement = statements.run_statement

    def noted(cursor: Any, statement: Statement) -> Any:
        seen.append(statement.sql)
        return run_statement(cursor, statement)

    monkeypatch.setattr(statements, "run_statement", noted)
    steps: list[dict[str, Any]] = []
    given = "trigger.n"
    for name in CHAIN:
        action = {"agent": "hand", "tool_name": "work", "arguments": {"n": {"$expr": given}}}
        steps.append({"id": name, "action": action, "depends_on": [step["id"] for step in steps[-1:]]})
        given = f"steps.{name}.result.n"
    with open_world(SqliteStore()) as world:
        async with (
            deadlock_is_an_error(),
            world.open(workflow={"engine": "embedded"}) as core,
            client(core) as boss,
            worker(core, "hand", lambda task: {"n": asked(task)["n"] + 1}),
        ):
            await boss.create({"name": "flow", "steps": steps})
            await boss.ended(await boss.run({"n": 0}))
            seen.clear()
            execution_id = await boss.run({"n": 5})
            begun = len(seen)
            await boss.ended(execution_id)
    of_workflows = [sql for sql in seen if "workflow_" in sql and "SELECT step, item" not in sql]
    # The version; row, history, step.
    assert len([sql for sql in seen[:begun] if "workflow_" in sql]) == 4
    assert not any("has_children" in sql and sql.startswith("UPDATE") for sql in seen)
    writes = [sql for sql in of_workflows if not sql.startswith("SELECT")]
    # The start writes 3 rows, a step in the middle 4, the last one 3: its own, history, execution.
    assert len(writes) == 3 + 2 * 4 + 3
    # CLAIM and COMPLETE of a step find the row of its task in memory: that would be six more.
    assert len([sql for sql in seen if sql.startswith("SELECT task_id, task_type") and "WHERE task_id" in sql]) <= 3
