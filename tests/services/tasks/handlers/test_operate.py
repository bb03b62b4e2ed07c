"""Each operation is a row of OPERATIONS, and each move a row of RULES."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.tasks import Move
from aether_trio.model.tasks.transitions import RULES
from aether_trio.services.tasks.handlers import operate as handler
from aether_trio.services.tasks.handlers.operate import OPERATIONS, OperationRule
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect
from tests.services.tasks.peers import create, operate

NEW = 99
"""A number that the protocol does not have."""


def test_each_operation_has_a_move_and_each_move_a_rule() -> None:
    assert set(OPERATIONS) == set(pb.TaskOperation.OpType.values())
    assert set(RULES) == set(Move)


async def test_a_row_is_all_that_the_gateway_needs_for_an_operation(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator)).task_id
        assert (await operate(creator, NEW, task_id)).error == "unknown task operation 99"
        row = OperationRule(Move.CANCEL, "task put aside", needs_wait=True)
        monkeypatch.setattr(handler, "OPERATIONS", {**OPERATIONS, NEW: row})
        assert (await operate(creator, NEW, task_id)).error == "wait_spec is required"
        monkeypatch.setattr(handler, "OPERATIONS", {**OPERATIONS, NEW: row._replace(needs_wait=False)})
        answer = await operate(creator, NEW, task_id)
        assert (answer.message, answer.task.status) == ("task put aside", pb.TASK_STATUS_CANCELLED)
