"""Rows that a client makes up: what one session adds to the audit log is bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.audit.counts import SESSION_KINDS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect
from tests.services.authority.people import GrantOp, grant_op

MANY = 2 * SESSION_KINDS


def key_elsewhere(number: int) -> pb.UpstreamMessage:
    op = pb.KVOperation(op=pb.KVOperation.GET, scope=pb.KVOperation.WORKSPACE, workspace=f"w{number}", key="k")
    return pb.UpstreamMessage(kv_op=op)


def user_elsewhere(number: int) -> pb.UpstreamMessage:
    op = pb.KVOperation(op=pb.KVOperation.LIST, scope=pb.KVOperation.USER_SHARED, user_id=f"u{number}")
    return pb.UpstreamMessage(kv_op=op)


def disconnect(number: int) -> pb.UpstreamMessage:
    op = pb.SessionOperation(op=pb.SessionOperation.DISCONNECT, session_id=f"s{number}")
    return pb.UpstreamMessage(session_op=op)


def message(number: int) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(send=pb.SendMessage(target_topic=f"no-topic::{number}", payload=b"x"))


def task(number: int) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(create_task=pb.CreateTaskRequest(task_type=f"t{number}", workspace="no workspace"))


def grant(number: int) -> pb.UpstreamMessage:
    op = pb.AuthorityGrantOperation(op=GrantOp.REVOKE, grant_id=f"g{number}")
    return pb.UpstreamMessage(authority_grant_op=op)


async def rows(core: Core) -> int:
    await trio.sleep(3)
    await core.audit.writer.flush()
    return core.audit.writer.written


@pytest.mark.parametrize("made_up", [key_elsewhere, user_elsewhere, disconnect, message, task, grant])
async def test_names_that_a_client_makes_up(core: Core, made_up: Callable[[int], pb.UpstreamMessage]) -> None:
    async with connect(core, agent("w", "intruder", "1")) as intruder, connect(core, agent("w", "b", "1")) as other:
        before = await rows(core)
        for number in range(MANY):
            intruder.send(made_up(number))
        await barrier(intruder)
        flooded = await rows(core) - before
        # Decisions on them have a bound of their own (services/access/decision_log.py).
        assert 10 < flooded < MANY
        assert not (await grant_op(other, GrantOp.REVOKE, grant_id="mine")).success
        assert await rows(core) == before + flooded + 1
