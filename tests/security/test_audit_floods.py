"""Rows that a client makes up: what one session adds to the audit log is bounded."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.audit.counts import SESSION_KINDS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors
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


def checks(number: int) -> pb.UpstreamMessage:
    asked = [pb.ResourceAccessRequest(resource_type="workspace", resource_id=f"w{one}") for one in range(number)]
    return pb.UpstreamMessage(batch_access_check=pb.BatchAccessCheckOperation(request_id="b", access=asked))


async def test_each_access_of_a_batch_counts_as_a_request(world: World) -> None:
    limits = {"request_rate_per_s": 10.0, "request_burst": 150}
    async with world.open(limits=limits) as core, connect(core, agent("w", "intruder", "1")) as intruder:
        answers = []
        for _ in range(3):
            intruder.send(checks(100))
            answers.append((await intruder.next("batch_access_check_response")).batch_access_check_response)
        assert [len(one.decisions) for one in answers] == [100, 0, 0]
        assert {one.code for one in errors(intruder)} == {"ERR_RATE_LIMITED"}


async def test_every_receipt_has_its_row(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, agent("w", "b", "1")) as other:
        wish = pb.ResourceAccessRequest(resource_type="workspace", resource_id="w")
        on_condition = pb.SendMessage(target_topic="ag::w::b::1", payload=b"x", checked_access=wish)
        receipts = []
        for _ in range(2):
            peer.send(checks(100))
            receipts += (await peer.next("batch_access_check_response")).batch_access_check_response.decisions
        peer.send(pb.UpstreamMessage(send=on_condition))
        await barrier(peer, other)
        [delivered] = [one.msg for one in other.waiting("msg")]
        receipts.append(delivered.access_receipt)
        monkeypatch.setattr(core.audit.writer, "_queue_bytes", 0)
        peer.send(checks(1), pb.UpstreamMessage(send=on_condition))
        refused = (await peer.next("batch_access_check_response")).batch_access_check_response
        await barrier(peer, other)
        assert (refused.success, len(refused.decisions)) == (False, 0)
        assert [one.code for one in errors(peer)] == ["ERR_CIRCUIT_OPEN", "ERR_CIRCUIT_OPEN"]
        assert len(other.waiting("msg")) == 1
        monkeypatch.undo()
        await rows(core)
        found = await core.tasks.engine.database.fetch(
            "SELECT metadata FROM audit_log WHERE metadata LIKE '%decision_id%'"
        )
        assert sorted(json.loads(one)["decision_id"] for (one,) in found) == sorted(one.decision_id for one in receipts)
        assert len({one.decision_id for one in receipts}) == 201
