"""Check what the transaction of a new task writes when a worker has room."""

from __future__ import annotations

import pytest

from aether_trio.model.tasks import Mode, StoredStatus, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.transaction import payloads
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Deferred, Execute, Fetch, single
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.direct import Store

WORKER = "ag::w::i::1"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("live", "status"), [(0, StoredStatus.ASSIGNED), (1, StoredStatus.PENDING)])
def test_a_new_task_is_written_once_as_what_it_becomes(live: int, status: StoredStatus, shared: bool) -> None:
    spec = pb.CreateTaskRequest(task_type="t").SerializeToString()
    task = TaskRow("t1", "t", "w", mode=Mode.POOL, creator="ag::w::c::1", target_implementation="i", spec=spec)
    tx = TaskTransaction(Context(1000, "n1", TimeLimits(), shared))
    program = tx.create(task, b"payload")
    said: list[tuple[str, tuple[object, ...]]] = []
    statement = next(program)
    with pytest.raises(StopIteration) as end:
        while True:
            said.append((statement.sql, tuple(statement.args)))  # type: ignore[union-attr]
            if isinstance(statement, Fetch):
                assert "task_workers" in statement.sql
                statement = program.send([("t1", WORKER, "s1", "n1", "w", "i", 1, 1, 1, 0, 0)] * (1 - live))
            else:
                assert isinstance(statement, Execute | Deferred)
                # On PostgreSQL to find the worker is the only round trip.
                assert isinstance(statement, Deferred) or not shared
                statement = program.send(1)
    assert end.value.value is True
    # It looks once, and first: before any program of its commit group frees a worker.
    assert [number for number, (sql, _) in enumerate(said) if "UPDATE task_workers" in sql] == [0]
    [(_, row)] = [(sql, args) for sql, args in said if sql.startswith("INSERT INTO tasks ")]
    assert status in row
    assert not any(sql.startswith("UPDATE tasks ") for sql, _ in said)
    assert [(push.task.status, push.payload) for push in tx.effects.assignments] == [(status, b"payload")] * (1 - live)
    assert (task.status, task.queue != "") == (StoredStatus.PENDING, True)


@pytest.mark.parametrize("size", [0, 1, payloads.INLINE_BYTES, payloads.INLINE_BYTES + 1])
def test_a_payload_is_found_wherever_it_lies(store: Store, size: int) -> None:
    place = store.place()
    direct = place.direct("tasks")
    payload = bytes(range(256)) * 3
    task = TaskRow("t1", "t", "w", creator="ag::w::c::1")
    direct.drive(lambda: TaskTransaction(Context(1000, "n1", TimeLimits())).create(task, payload[:size]))
    found = direct.drive(lambda: payloads.load("t1"))
    apart = direct.drive(lambda: single(Fetch("SELECT task_id FROM task_payloads")))
    place.close()
    assert found == payload[:size]
    assert bool(apart) == (size > payloads.INLINE_BYTES)
