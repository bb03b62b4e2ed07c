"""With 100,000 queued tasks, no statement reads more rows than it uses.

The statements are those that the gateway makes, caught as it makes them; the plans are what the
engine says it would do with each. A scan of a table that grows, or a sort, would be a cost that
grows with what waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.handlers import query
from aether_trio.services.tasks.handlers.operate import OperationRequest, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import due, sessions, task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_rows import FIELDS
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.storage.base import Deferred, Execute, Fetch, Program, Statement, single
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.direct import Direct, Store, caught

QUEUED = 100_000
GROWING = ("tasks", "task_attempts", "task_events", "task_payloads", "task_keys", "task_dependents", "task_tokens")
NOW_MS = 1_700_000_000_000
A = Worker("ag::w::i::a", "s", "n", "w", "i", True, 0, 2)


@pytest.fixture(scope="module")
def full(store: Store) -> Iterator[Direct]:
    """Make a pool with so many waiting tasks of three priorities, and a full worker."""
    place = store.new_place()
    direct = place.direct("tasks")
    first = TaskRow(
        "t-000000",
        "work",
        "w",
        mode=Mode.POOL,
        target_implementation="i",
        creator="ag::w::c::1",
        root_task_id="t-000000",
    )
    first.created_ms = first.updated_ms = first.pending_ms = NOW_MS
    first.order_us = NOW_MS * 1000
    if direct.shared:  # the statistics are those of the ANALYZE below, and not the server's
        for table in GROWING:
            off = Execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            direct.drive(lambda off=off: single(off))  # type: ignore[misc]
    context = Context(NOW_MS, "n", TimeLimits())
    direct.drive(lambda: TaskTransaction(context).create(first, b""))
    changed = {
        "task_id": "'t-' || substr('000000' || n, -6)" if not direct.shared else "'t-' || lpad(n::text, 6, '0')",
        "root_task_id": "'t-' || n",
        "priority": "10 + 10 * (n % 3)",
        "order_us": "order_us + n",
        "due_ms": "due_ms + n",
        "updated_ms": "updated_ms + n",
    }
    fields = ", ".join(changed.get(name, name) for name in FIELDS.split(", "))
    numbers = f"generate_series(1, {QUEUED}) AS s(n)"
    if not direct.shared:
        numbers = (
            f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {QUEUED}) SELECT n FROM c)"
        )
    insert = Execute(f"INSERT INTO tasks ({FIELDS}) SELECT {fields} FROM tasks, {numbers}")
    direct.drive(lambda: single(insert))
    direct.drive(lambda: single(Execute("ANALYZE tasks")))
    yield direct
    place.close()


def a_working_life(context: Context) -> Program[None]:
    """A worker connects, is assigned tasks, works and disconnects; a task falls due."""
    tx = TaskTransaction(context)
    caller = Caller(Identity.parse(A.identity), "w")
    yield from sessions.join(tx, sessions.WorkerJoined(A, resumed=False))
    for _ in range(3):
        [task, *_] = yield from task_rows.select(
            "holder = $1 AND holder <> '' ORDER BY priority DESC, order_us", (A.identity,)
        )
        for move in (Move.CLAIM, Move.COMPLETE):
            outcome = yield from operate(context, caller, OperationRequest(task.task_id, move))
            assert outcome.refusal == ""
    new = TaskRow("new", "work", "w", mode=Mode.POOL, target_implementation="i", creator="ag::w::c::1")
    new.created_ms = new.updated_ms = new.pending_ms = NOW_MS
    yield from tx.create(new, b"payload")
    yield from sessions.leave(tx, sessions.WorkerLeft(A.identity, A.session_id, clean=False))
    yield from due.next_moment()


def test_no_statement_of_a_working_life_reads_what_waits(full: Direct) -> None:
    statements: list[Statement] = []
    context = Context(NOW_MS, "n", TimeLimits(), shared=full.shared)
    full.drive(lambda: caught(a_working_life(context), statements))
    seen: dict[str, str] = {}
    for statement in statements:
        assert isinstance(statement, Fetch | Execute | Deferred)
        if statement.sql not in seen:
            seen[statement.sql] = _plan(full, statement)
    assert len(seen) > 12
    for sql, plan in seen.items():
        for table in GROWING:
            assert not re.search(rf"(Seq Scan on|SCAN) {table}\b(?! USING (COVERING )?INDEX)", plan), f"{sql}\n{plan}"
        # What one worker has is at most what it has room for, and may be sorted.
        if re.search(r"\btasks\b", plan) and "holder = $1" not in sql:
            assert "Sort Key" not in plan, f"{sql}\n{plan}"
            assert "TEMP B-TREE" not in plan, f"{sql}\n{plan}"


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, "tasks_listed"),
        ({"statuses": [pb.TASK_STATUS_FAILED]}, "tasks_in_trouble"),
        ({"statuses": [pb.TASK_STATUS_WAITING_INPUT, pb.TASK_STATUS_HIBERNATED]}, "tasks_in_trouble"),
        ({"status": pb.TASK_STATUS_WAITING_DEPENDENCY}, "tasks_in_trouble"),
        ({"statuses": [pb.TASK_STATUS_FAILED, pb.TASK_STATUS_QUEUED]}, "tasks_listed"),
        ({"correlation_id": "none"}, "tasks_by_correlation"),
        ({"context_id": "none"}, "tasks_by_context"),
    ],
)
def test_what_is_rare_is_found_among_many(full: Direct, wanted: dict[str, Any], index: str) -> None:
    where, args = query.condition(pb.TaskFilter(**wanted), "w", "")
    plan = _plan(full, Fetch(f"SELECT {FIELDS} FROM tasks WHERE {where}", args))
    assert re.search(rf"(USING INDEX|Index Scan using) {index}\b", plan), plan
    assert "Sort" not in plan, plan
    assert "TEMP B-TREE" not in plan, plan


def test_a_beginning_of_many_ids_is_not_looked_up_among_all_workspaces(full: Direct) -> None:
    """A caller without tasks would have had all those of others read and sorted."""
    for text, few, index in (("t-", False, "tasks_listed"), ("t-0000", True, "sqlite_autoindex_tasks_1|tasks_pkey")):
        assert full.drive(lambda text=text: query.are_few(text)) is few  # type: ignore[misc]
        where, args = query.condition(pb.TaskFilter(), "w", beginning=query.IdPrefix(text, few))
        plan = _plan(full, Fetch(f"SELECT {FIELDS} FROM tasks WHERE {where}", args))
        assert re.search(rf"(USING INDEX|Index Scan (using|on)) ({index})\b", plan), plan
        found = full.drive(lambda where=where, args=args: query.list_page(where, args, 100))  # type: ignore[misc]
        assert len(found.tasks) == 100
        assert all(task.task_id.startswith(text) for task in found.tasks)


def _plan(direct: Direct, statement: Fetch | Execute) -> str:
    explain = "EXPLAIN " if direct.shared else "EXPLAIN QUERY PLAN "
    found = direct.drive(lambda: single(Fetch(explain + statement.sql, statement.args)))
    return "\n".join(str(row[-1]) for row in found)
