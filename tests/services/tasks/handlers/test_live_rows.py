"""On SQLite, CLAIM and COMPLETE take a row from memory, as the table has it."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect
from tests.services.tasks.peers import Op, create, operate, report

NUMBERS = "SELECT number FROM task_events WHERE task_id = $1 ORDER BY number"


async def test_the_moves_of_a_worker_read_no_row(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    if core.tasks.engine.database.shared:
        pytest.skip("other processes write to a shared database")
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        await operate(worker, Op.CLAIM, "none")
        read: list[str] = []
        load = task_rows.load
        monkeypatch.setattr(task_rows, "load", lambda task_id: (read.append(task_id), load(task_id))[1])
        task_id = (await create(creator)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        assert not read
        refused = await operate(worker, Op.FAIL, task_id)
        assert "has ended" in refused.error
        assert read == [task_id]


async def test_what_other_programs_write_between_them_is_seen(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        worker.send(report(task_id))
        child = await create(worker, parent_task_id=task_id)
        assert child.success, child.error_message
        done = await operate(worker, Op.COMPLETE, task_id)
        assert done.success, done.error
        assert done.task.status == pb.TASK_STATUS_COMPLETED
        numbers = [number for (number,) in world.databases["tasks"].query(NUMBERS, task_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= 4  # begun, progress, the child, completed
