"""With 20,000 waits and rules, no statement reads more rows than it uses.

The statements are those that the gateway makes, caught as it makes them; the plans are what the
engine says it would do with each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import pytest

from aether_trio.model.workflows.happenings import OpenWait, StepPlace
from aether_trio.services.tasks.transaction import due
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.waits import WaitPosition, Waits
from aether_trio.services.workflows.stored import (
    changes,
    definitions,
    join_rows,
    machine_rows,
    rule_rows,
    schedule_rows,
    timers,
)
from aether_trio.services.workflows.stored.join_rows import JoinRow
from aether_trio.services.workflows.stored.machine_rows import InstanceRow
from aether_trio.services.workflows.stored.rule_rows import StoredRule
from aether_trio.storage.base import Deferred, Execute, ExecuteMany, Fetch, Program, Statement, single
from tests.helpers.direct import Direct, Store, caught

MANY = 20_000
NOW_MS = 1_700_000_000_000
COPIED: Mapping[str, Mapping[str, str]] = {
    "workflow_executions": {"execution_id": "{id}", "root_id": "{id}", "started_ms": "started_ms + n"},
    "workflow_waits": {"execution_id": "{id}", "value_hash": "{id}", "number": "number - n"},
    "workflow_interests": {"execution_id": "{id}"},
    "workflow_kept_events": {"number": "number - n", "event": "{id}"},
    "workflow_kept_keys": {"number": "number - n", "event": "{id}", "value_hash": "{id}"},
    "workflow_timers": {"key": "{id}", "due_ms": "due_ms + n"},
    "workflow_rules": {"id": "id + n", "name": "{id}", "changed": "changed + n"},
    "workflow_instances": {"instance_id": "{id}", "updated_ms": "updated_ms + n"},
    "workflow_joins": {"join_id": "{id}", "correlation_key": "{id}", "updated_ms": "updated_ms + n"},
}
"""What differs in the copies of the one row of each table."""
WAIT = OpenWait(place=StepPlace("a"), event="paid", key_source="input.order", value=1.0)
AWAITED = [("paid", "input.order")]
ENV = {"input": {"order": 1.0}, "source": {"agent": "a"}}
RULE = StoredRule(1, "w", "r", b"{}", "", True, "me", 1, 1, 1, "made", "*", 0, "[]")
INSTANCE = InstanceRow("w", "w", "m", "i", "open", b"{}", 1, "", 0, 0, 1, 1)
JOIN = JoinRow("j", "w", "join", "key", "count", 1, 2, 0, "open", 1, 0, 1, 1, 1, b"{}", b"{}")


def execution(execution_id: str) -> ExecutionRow:
    row = ExecutionRow(execution_id, "w", "w", "flow", 1, "me", "running", b"{}", b"{}", root_id=execution_id)
    row.started_ms = NOW_MS
    return row


def first_rows(waits: Waits) -> Program[None]:
    """Write one row of each table."""
    yield from execution_rows.insert(execution("e"))
    yield from waits.begin("e", "w", AWAITED)
    yield from waits.open("e", "w", WAIT, "a")
    yield from timers.set_timer("execution", "e", NOW_MS)
    yield from waits.keep("w", "paid", ENV, (yield from waits.keys("w", "paid")), NOW_MS)
    yield from changes.begin(changes.RULE)
    yield from rule_rows.insert(RULE)
    yield from machine_rows.insert_instance(INSTANCE)
    yield from join_rows.put(JOIN, None)


@pytest.fixture(scope="module")
def full(store: Store) -> Iterator[Direct]:
    """Fill the tables with copies of what the gateway writes."""
    place = store.new_place()
    direct = place.direct("tasks")
    direct.drive(lambda: first_rows(Waits()))
    name = "'e-' || lpad(n::text, 6, '0')" if direct.shared else "'e-' || substr('000000' || n, -6)"
    numbers = f"generate_series(1, {MANY}) AS s(n)"
    if not direct.shared:
        numbers = f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {MANY}) SELECT n FROM c)"
    for table, changed in COPIED.items():
        if direct.shared:  # the statistics are those of the ANALYZE below, and not the server's
            direct.drive(lambda: single(Execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")))  # noqa: B023
        columns = _columns(direct, table)
        values = ", ".join(changed.get(column, column).format(id=name) for column in columns)
        copy = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table}, {numbers}"
        direct.drive(lambda copy=copy: single(Execute(copy)))  # type: ignore[misc]
        direct.drive(lambda: single(Execute(f"ANALYZE {table}")))  # noqa: B023
    yield direct
    place.close()


def _columns(direct: Direct, table: str) -> list[str]:
    sql = f"SELECT name FROM pragma_table_info('{table}')"
    if direct.shared:
        sql = f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
    return [row[0] for row in direct.drive(lambda: single(Fetch(sql)))]


def a_waiting_life(waits: Waits) -> Program[None]:
    """An execution begins, waits, takes an event, ends, and is forgotten."""
    yield from execution_rows.insert(execution("new"))
    yield from waits.begin("new", "w", AWAITED)
    yield from waits.open("new", "w", WAIT, "a")
    yield from timers.set_timer("execution", "new", NOW_MS)
    number = yield from waits.keep("w", "paid", ENV, (yield from waits.keys("w", "paid")), NOW_MS)
    yield from waits.kept(number)
    found = yield from waits.waiting(number, WaitPosition(), 10)
    assert [wait.execution_id for _, wait in found] == ["e", "new"]
    yield from waits.take("new", "a", number)
    assert (yield from waits.next_kept("new", StepPlace("a"), 0)) is None
    yield from waits.close("new", StepPlace("a"))
    yield from due.next_moment()
    row = yield from execution_rows.load("new")
    assert row is not None
    yield from execution_rows.save(row)
    yield from waits.end("new")
    yield from execution_rows.delete("new")


def lists() -> Program[None]:
    """Lists are read page by page, also of what there is not."""
    for status in ("running", "failed"):
        for flow in ("", "flow", "other"):
            yield from execution_rows.newest(["w", "*"], [status], flow, 100)
            yield from execution_rows.newest(["w"], [status], flow, 100, (NOW_MS + 5_000, "e-005000"))
    found = yield from execution_rows.newest(["w"], [], "", 100)
    assert len(found) == 100
    for machine in ("", "m"):
        yield from machine_rows.listed(["w"], machine, 100)
        yield from machine_rows.listed(["w"], machine, 100, (5_000, INSTANCE.timer_key))
    for status in ("", "fired"):
        yield from join_rows.listed(["w"], status, 100)
        yield from join_rows.listed(["w"], status, 100, (5_000, "j"))
    yield from rule_rows.of_workspaces(["w"], 5_000, 100)
    yield from schedule_rows.listed(["w"], 100, ("w", "s"))
    yield from definitions.newest_of_workspaces(["w"], 100, ("w", "s"))
    yield from machine_rows.of_workspaces(["w"], 100, ("w", "s"))


def a_change_of_rules() -> Program[None]:
    """A rule is applied and another one deleted; a node reads what has changed."""
    changed = yield from changes.begin(changes.RULE)
    yield from rule_rows.named("w", "e-000005")
    yield from rule_rows.count()
    yield from rule_rows.insert(StoredRule(100_000, "w", "n", b"{}", "", True, "me", 1, 1, changed, "x", "*", 0, "[]"))
    yield from rule_rows.delete(7)
    yield from changes.current(changes.RULE)
    yield from rule_rows.changed_since(MANY - 10, 21)


@pytest.mark.parametrize(
    "life", [lambda: a_waiting_life(Waits()), lists, a_change_of_rules], ids=["wait", "list", "rule"]
)
def test_no_statement_reads_what_waits(full: Direct, life: Callable[[], Program[None]]) -> None:
    statements: list[Statement] = []
    full.drive(lambda: caught(life(), statements))
    seen: dict[str, str] = {}
    for statement in statements:
        if not isinstance(statement, ExecuteMany) and statement.sql not in seen:
            assert isinstance(statement, Fetch | Execute | Deferred)
            seen[statement.sql] = _plan(full, statement)
    assert len(seen) > 6
    for sql, plan in seen.items():
        for table in COPIED:
            assert not re.search(rf"(Seq Scan on|SCAN) {table}\b(?! USING (COVERING )?INDEX)", plan), f"{sql}\n{plan}"


def _plan(direct: Direct, statement: Fetch | Execute | Deferred) -> str:
    explain = "EXPLAIN " if direct.shared else "EXPLAIN QUERY PLAN "
    found = direct.drive(lambda: single(Fetch(explain + statement.sql, statement.args)))
    return "\n".join(str(row[-1]) for row in found)
