"""Operations reach the engine that is connected, and each caller gets one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.limits import MIB
from aether_trio.services.workflows.engine import relay as relay_module
from aether_trio.services.workflows.engine.relay import (
    ANSWER_S,
    ENGINE_ENDED,
    MAX_PER_SESSION,
    NOT_CONNECTED,
    TIMED_OUT,
)
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, message_to, payloads, service, user, workflow_engine
from tests.services.authority.people import EXCHANGE, acting_for, allow, delegated

Op = pb.WorkflowOperation
PLANNER = ("agent", "ag::prod::planner::1")


def asks(request_id: str, op: Op.OpType.ValueType = Op.LIST_RULES, **fields: Any) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(workflow_op=Op(op=op, request_id=request_id, **fields))


def says(request_id: str, data: bytes = b"", **fields: Any) -> pb.UpstreamMessage:
    fields = {"success": True, **fields}
    return pb.UpstreamMessage(workflow_response=pb.WorkflowResponse(request_id=request_id, data=data, **fields))


async def reached(engine: MemoryLink) -> pb.WorkflowOperation:
    return (await engine.next("workflow_op")).workflow_op


async def answered(peer: MemoryLink) -> pb.WorkflowResponse:
    return (await peer.next("workflow_response")).workflow_response


def refusal(answer: pb.WorkflowResponse, request_id: str) -> str:
    assert (answer.success, answer.request_id, answer.data) == (False, request_id, b"")
    return answer.error


@asynccontextmanager
async def engine_and_caller(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    async with connect(core, workflow_engine()) as engine, connect(core, agent("prod", "planner", "1")) as caller:
        yield engine, caller


async def test_without_an_engine_the_answer_says_so_at_once(core: Core) -> None:
    before = trio.current_time()
    async with connect(core, agent("w", "a", "1")) as caller:
        caller.send(asks("mine"))
        assert refusal(await answered(caller), "mine") == NOT_CONNECTED
        caller.send(asks(""))
        answer = await answered(caller)
        assert refusal(answer, answer.request_id) == NOT_CONNECTED
        assert answer.request_id  # the gateway makes one up
    assert trio.current_time() - before < 1


async def test_an_operation_arrives_as_it_was_sent_and_its_answer_returns(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller):
        sent = {"id": "r1", "secondary_id": "k", "workspace": "prod", "data": b'{"a": 1}', "status_filter": "running"}
        caller.send(asks("mine", Op.GET_JOIN, **sent))
        op = await reached(engine)
        assert (op.op, {name: getattr(op, name) for name in sent}) == (Op.GET_JOIN, sent)
        assert op.request_id not in {"", "mine"}
        engine.send(says(op.request_id, b"[]", message="found", total_count=7))
        answer = await answered(caller)
        assert (answer.success, answer.request_id, answer.data) == (True, "mine", b"[]")
        assert (answer.message, answer.total_count) == ("found", 7)


async def test_the_gateway_says_who_asks_whatever_the_client_claims(core: Core) -> None:
    forged = pb.WorkflowRequestContext(
        actor=pb.PrincipalRef(principal_type="user", principal_id="root"),
        actor_session_id="another",
        root_grant_id="g",
        policy_digest="d",
        policy_version=9,
    )
    async with engine_and_caller(core) as (engine, caller):
        session = core.registry.holder("ag::prod::planner::1")
        assert session is not None
        caller.send(asks("mine", request_context=forged))
        me = pb.PrincipalRef(principal_type="agent", principal_id="ag::prod::planner::1")
        known = pb.WorkflowRequestContext(actor=me, subject=me, actor_session_id=session.session_id)
        assert (await reached(engine)).request_context == known
        async with connect(core, user("ann", "w")) as window:
            window.send(asks("mine"))
            actor = (await reached(engine)).request_context.actor
            assert (actor.principal_type, actor.principal_id) == ("user", "ann")


async def test_one_who_acts_for_another_is_shown_with_its_grant(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller), connect(core, user("ann", "w")) as ann:
        await allow(core, "user:ann", EXCHANGE)
        grant_id = await delegated(core, ann, PLANNER, workspace_scope=["prod"])
        scope = pb.WorkflowScheduleAuthorityScope(
            lifetime_mode=pb.WORKFLOW_AUTHORITY_LIFETIME_DURABLE, policy_version=1
        )
        caller.send(
            asks(
                "mine",
                Op.CREATE_SCHEDULE,
                workspace="prod",
                authorization=acting_for("ann", grant_id),
                schedule_authority_scope=scope,
            )
        )
        context = (await reached(engine)).request_context
        assert (context.actor.principal_id, context.subject.principal_id) == (PLANNER[1], "ann")
        assert context.source_grant_id == grant_id == context.schedule_authorization.grant_id
        assert context.root_grant_id not in {"", grant_id}
        assert context.expires_at_ms > core.clock.now_ms()
        assert (context.lifetime_mode, context.policy_version) == (pb.WORKFLOW_AUTHORITY_LIFETIME_DURABLE, 1)
        for wanted, workspace in ((grant_id, "other"), ("unknown", "prod")):
            caller.send(asks("no", workspace=workspace, authorization=acting_for("ann", wanted)))
            assert refusal(await answered(caller), "no")
        assert engine.waiting("workflow_op") == []


async def test_each_caller_gets_its_own_answer_under_its_own_id(core: Core) -> None:
    async with engine_and_caller(core) as (engine, first), connect(core, service("s", "1")) as second:
        first.send(asks("same", id="first"), asks("same", id="again"))
        second.send(asks("same", id="second"))
        ops = {op.id: op.request_id for op in [await reached(engine) for _ in range(3)]}
        assert len(set(ops.values())) == 3
        for name in ("second", "again", "first"):
            engine.send(says(ops[name], name.encode()))
        assert [(await answered(first)).data for _ in range(2)] == [b"again", b"first"]
        assert (await answered(second)).data == b"second"


async def test_the_client_goes_on_while_it_waits_and_the_engine_may_ask_itself(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller):
        caller.send(asks("mine"))
        await barrier(caller)
        engine.send(asks("its own"))
        caller_op, own_op = await reached(engine), await reached(engine)
        engine.send(says(own_op.request_id, b"own"))
        assert (await answered(engine)).data == b"own"
        engine.send(says(caller_op.request_id, b"late"))
        assert (await answered(caller)).data == b"late"


async def test_what_was_sent_before_is_committed_when_the_engine_is_asked(core: Core, world: World) -> None:
    async with engine_and_caller(core) as (engine, caller):
        world.log.before_write.close()
        caller.send(message_to("event::*", b"{}", pb.EVENT), asks("mine"))
        await world.log.before_write.arrival()
        assert engine.waiting("workflow_op") == []
        world.log.before_write.open()
        await reached(engine)
        assert world.log.query("SELECT COUNT(*) FROM messages") == [(1,)]


async def test_forged_repeated_unknown_and_late_answers_are_ignored(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller), connect(core, agent("prod", "eve", "1")) as eve:
        caller.send(asks("mine"))
        op = await reached(engine)
        eve.send(says(op.request_id, b"forged"), says("mine", b"forged"))
        caller.send(says(op.request_id, b"forged"))
        await barrier(eve, caller)
        assert caller.waiting("workflow_response") == []
        engine.send(says("unknown"), says("mine", b"by the wrong id"), says(op.request_id, b"right"))
        engine.send(says(op.request_id, b"again"))
        await barrier(engine)
        assert [one.workflow_response.data for one in caller.waiting("workflow_response")] == [b"right"]
        assert core.workflows.relay.statistics().ignored == 6
        assert eve.waiting("error") == caller.waiting("error") == engine.waiting("error") == []


async def test_an_answer_that_does_not_come_in_time_is_an_error(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller):
        before = trio.current_time()
        caller.send(asks("mine"))
        op = await reached(engine)
        assert refusal(await answered(caller), "mine") == TIMED_OUT
        assert ANSWER_S <= trio.current_time() - before < 2 * ANSWER_S
        engine.send(says(op.request_id, b"late"))
        await barrier(engine)
        assert caller.waiting("workflow_response") == []
        assert core.workflows.relay.statistics().pending == 0


@pytest.mark.parametrize("how", ["finish", "cut", "disconnect"])
async def test_the_end_of_the_engine_ends_what_waits_for_it(core: Core, how: str) -> None:
    async with engine_and_caller(core) as (engine, caller):
        caller.send(asks("one"), asks("two"))
        op = await reached(engine)
        await reached(engine)
        before = trio.current_time()
        if how == "disconnect":
            session = core.registry.holder("wfe::shard0")
            assert session is not None
            session.disconnect("by an operator")
        else:
            getattr(engine, how)()
        assert [refusal(await answered(caller), name) for name in ("one", "two")] == [ENGINE_ENDED] * 2
        assert trio.current_time() - before < ANSWER_S / 2
        caller.send(asks("three"))
        assert refusal(await answered(caller), "three") == NOT_CONNECTED
        async with connect(core, workflow_engine()) as successor:
            successor.send(says(op.request_id, b"not its own"))
            caller.send(asks("four"))
            successor.send(says((await reached(successor)).request_id, b"4"))
            assert (await answered(caller)).data == b"4"


async def test_the_end_of_the_caller_frees_its_place(core: Core) -> None:
    async with connect(core, workflow_engine()) as engine:
        async with connect(core, agent("w", "a", "1")) as caller:
            caller.send(asks("mine"))
            op = await reached(engine)
        assert core.workflows.relay.statistics().pending == 0
        engine.send(says(op.request_id, b"too late"))
        await barrier(engine)


async def test_a_client_has_only_so_many_operations_waiting(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller), connect(core, agent("w", "b", "1")) as other:
        caller.send(*(asks(str(number)) for number in range(MAX_PER_SESSION + 1)))
        assert "wait for one of them" in refusal(await answered(caller), str(MAX_PER_SESSION))
        other.send(asks("mine"))
        ops = [await reached(engine) for _ in range(MAX_PER_SESSION + 1)]
        engine.send(says(ops[0].request_id, b"0"))
        assert (await answered(caller)).request_id == "0"
        caller.send(asks("room again"))
        await reached(engine)


async def test_all_clients_together_have_only_so_many(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_PENDING", 3)
    async with engine_and_caller(core) as (_, caller), connect(core, agent("w", "b", "1")) as other:
        caller.send(*(asks(str(number)) for number in range(3)))
        await barrier(caller)
        other.send(asks("too many"))
        assert "try again later" in refusal(await answered(other), "too many")


async def test_a_document_may_have_a_mebibyte(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller):
        caller.send(asks("large", data=b"x" * MIB), asks("too large", data=b"x" * (MIB + 1)))
        assert "at most 1048576 are allowed" in refusal(await answered(caller), "too large")
        op = await reached(engine)
        assert len(op.data) == MIB
        engine.send(says(op.request_id, b"y" * MIB))
        assert (await answered(caller)).data == b"y" * MIB


async def test_an_engine_that_reads_slowly_slows_down_those_who_ask(core: Core) -> None:
    async with engine_and_caller(core) as (engine, caller), connect(core, agent("w", "b", "1")) as other:
        engine.pause()
        caller.send(*(asks(str(number), data=b"x" * MIB) for number in range(4)))
        other.send(message_to("ag::prod::planner::1", b"hello"))
        await barrier(other)
        session = core.registry.holder("wfe::shard0")
        assert session is not None
        assert session.outbox.control_bytes < 2 * MIB
        assert payloads(caller) == [b"hello"]
        engine.resume()
        for number in range(4):
            op = await reached(engine)
            engine.send(says(op.request_id))
            assert (await answered(caller)).request_id == str(number)
        engine.pause()
        caller.send(*(asks(str(number), data=b"x" * MIB) for number in range(4, 6)))
        await trio.sleep(1)
        engine.cut()
        assert {refusal(await answered(caller), str(number)) for number in range(4, 6)} <= {ENGINE_ENDED, NOT_CONNECTED}
