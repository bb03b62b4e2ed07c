"""Test which answer belongs to which request, and what a cut does to both."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.client import (
    AetherError,
    AgentClient,
    ConnectionLost,
    FeedOverflow,
    NotImplementedByGateway,
    PermissionDenied,
    Refused,
    RequestTimeout,
)
from aether_trio.client.connection.requests import failure_of, prepare
from aether_trio.client.operation_table import OPERATIONS
from aether_trio.client.operations import NAMESPACES
from aether_trio.wire import error_response, framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.peer import scripted


def get(key: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(kv_op=pb.KVOperation(key=key))


DOWN = {field.name: field.message_type for field in pb.DownstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}
UP = {field.name for field in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}


def test_the_table_has_every_message_of_the_protocol() -> None:
    assert {*OPERATIONS, "init"} == UP
    by_another = {"topics"}  # its requests are messages of workspace_op
    assert {row.namespace for row in OPERATIONS.values()} == {"", *NAMESPACES} - by_another


def test_the_table_and_the_gateway_agree_on_responses() -> None:
    ends_a_tunnel = {case for case, answer in error_response.ANSWERS.items() if answer == "tunnel_close"}
    there = {case: answer for case, answer in error_response.ANSWERS.items() if case not in ends_a_tunnel}
    here = {row.case: row.response for row in OPERATIONS.values() if row.response}
    assert here == there | {"admin_query": "admin"}


@pytest.mark.parametrize("row", [row for row in OPERATIONS.values() if row.response], ids=lambda row: row.case)
def test_a_response_can_carry_the_id_and_the_failure_of_its_request(row: Any) -> None:
    message = pb.UpstreamMessage()
    getattr(message, row.case).SetInParent()
    assert prepare(message, "new") == (row.case, "new")
    assert prepare(message, "another") == (row.case, "new")
    fields = set(DOWN[row.response].fields_by_name)
    assert {"request_id", "client_request_id"} & fields
    assert row.success_field in fields | {""} or row.response in WITHOUT_FAILURE


WITHOUT_FAILURE = {"access_check_response", "batch_access_check_response"}
"""Responses that have no field for a failure: an ErrorResponse says it."""


def test_what_a_typed_failure_means() -> None:
    assert failure_of("kv", pb.KVResponse(success=True)) is None
    assert failure_of("resolve_authority_response", pb.ResolveAuthorityResponse(ok=True)) is None
    unserved = failure_of("task_op", pb.TaskOperationResponse(error="ERR_NOT_IMPLEMENTED: task_op is not served"))
    assert isinstance(unserved, NotImplementedByGateway)
    assert unserved.message == "task_op is not served"
    coded = failure_of("create_task", pb.CreateTaskResponse(error_code="ERR_PERMISSION_DENIED", error_message="no"))
    assert isinstance(coded, PermissionDenied)
    plain = failure_of("workspace", pb.WorkspaceResponse(error="there is none"))
    assert isinstance(plain, Refused)
    assert (plain.code, plain.message) == ("REFUSED", "there is none")


async def test_answers_find_their_callers_in_any_order_and_without_ids_in_theirs() -> None:
    found: dict[str, Any] = {}

    async def ask(a: AgentClient, name: str, message: pb.UpstreamMessage) -> None:
        found[name] = await a.request(message)

    async def body(a: AgentClient) -> None:
        first, second = (pb.UpstreamMessage(workspace_op=pb.WorkspaceOperation()) for _ in range(2))
        async with trio.open_nursery() as asking:
            for name, message in (("x", get("x")), ("y", get("y")), ("first", first), ("second", second)):
                asking.start_soon(ask, a, name, message)
                await trio.testing.wait_all_tasks_blocked()

    async with scripted(body) as (_, line):
        x, y, *_ = [await line.asked() for _ in range(4)]
        await line.tell(workspace=pb.WorkspaceResponse(success=True, message="1"))
        await line.tell(kv=pb.KVResponse(success=True, value=b"y", request_id=y.kv_op.request_id))
        await line.tell(workspace=pb.WorkspaceResponse(success=True, message="2"))
        await line.tell(kv=pb.KVResponse(success=True, value=b"x", request_id=x.kv_op.request_id))
    assert (found["x"].value, found["y"].value) == (b"x", b"y")
    assert (found["first"].message, found["second"].message) == ("1", "2")


async def test_a_failure_is_raised_once_whatever_the_gateway_says_twice() -> None:
    async def body(a: AgentClient) -> None:
        for _ in range(2):
            with pytest.raises(AetherError, match="KV_ERROR: the reason"):
                await a.request(get("k"))
        answer = await a.request(get("k"), check=False)
        assert not answer.success
        await a.request(get("k"))
        assert len(a.errors) == 0

    async with scripted(body) as (_, line):
        for number in range(3):
            request_id = (await line.asked()).kv_op.request_id
            reason = pb.ErrorResponse(code="KV_ERROR", message="the reason", request_id=request_id)
            if number != 1:
                await line.tell(kv=pb.KVResponse(success=False, request_id=request_id))
            await line.tell(error=reason)
        request_id = (await line.asked()).kv_op.request_id
        await line.tell(kv=pb.KVResponse(success=True, request_id=request_id))


async def test_a_late_answer_is_dropped() -> None:
    async def body(a: AgentClient) -> None:
        with pytest.raises(RequestTimeout) as caught:
            await a.request(get("slow"), timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        assert (await a.request(get("k"))).value == b"v"

    async with scripted(body) as (_, line):
        slow = (await line.asked()).kv_op.request_id
        quick = (await line.asked()).kv_op.request_id
        await line.tell(kv=pb.KVResponse(success=True, value=b"late", request_id=slow))
        await line.tell(kv=pb.KVResponse(success=True, value=b"v", request_id=quick))


async def test_a_cut_leaves_requests_in_doubt_unless_they_may_be_asked_again() -> None:
    answers: list[bytes] = []

    async def body(a: AgentClient) -> None:

        async def again() -> None:
            answers.append((await a.request(get("again"), idempotent=True)).value)

        async def once() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await a.request(get("once"))
            assert caught.value.in_doubt
            answers.append((await a.request(get("later"))).value)

        async with trio.open_nursery() as asking:
            asking.start_soon(again)
            asking.start_soon(once)

    async with scripted(body) as (peer, line):
        for _ in range(2):
            await line.asked()
        again = await peer.cut()
        for _ in range(2):
            operation = (await again.asked()).kv_op
            value, request_id = operation.key.encode(), operation.request_id
            await again.tell(kv=pb.KVResponse(success=True, value=value, request_id=request_id))
    assert sorted(answers) == [b"again", b"later"]


async def test_a_refusal_without_an_id_finds_who_waits_for_it() -> None:
    report = pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t"))

    async def body(a: AgentClient) -> None:
        await a.tell(report)
        with pytest.raises(PermissionDenied, match="second"):
            await a.tell_confirmed(report)
        await a.tell_confirmed(report)
        assert "first" in str(a.errors.get_nowait())

    async with scripted(body) as (_, line):

        async def answer(barrier: pb.UpstreamMessage) -> None:
            request_id = barrier.connection_status_request.request_id
            await line.tell(connection_status_response=pb.ConnectionStatusResponse(request_id=request_id, ok=True))

        async def refuse(why: str) -> None:
            await line.tell(error=pb.ErrorResponse(code="ERR_PERMISSION_DENIED", message=why))

        asked = [await line.asked() for _ in range(4)]
        kinds = [message.WhichOneof("payload") for message in asked]
        # A message without a waiting sender gets a barrier as soon as a sender waits behind it.
        assert kinds == ["progress", "connection_status_request", "progress", "connection_status_request"]
        await refuse("first")
        await answer(asked[1])
        await refuse("second")
        await answer(asked[3])
        assert (await line.asked()).HasField("progress")
        await answer(await line.asked())


async def test_feeds_hear_what_no_request_asked_for() -> None:
    ready = trio.Event()

    async def body(a: AgentClient) -> None:
        with (
            a.open_feed("task_assignment", match=lambda one: one.task_id != "2") as some,
            a.open_feed("task_assignment", capacity=2) as few,
            pytest.raises(ValueError, match="no case of DownstreamMessage"),
        ):
            ready.set()
            found = []
            async for one in some:
                found.append(one.task_id)
                if one.task_id == "4":
                    break
            assert found == ["1", "3", "4"]
            assert [(await anext(few)).task_id, (await anext(few)).task_id] == ["1", "2"]
            with pytest.raises(FeedOverflow):
                await anext(few)
            a.open_feed("nonsense")

    async with scripted(body) as (_, line):
        await ready.wait()
        for task_id in "1234":
            await line.tell(task_assignment=pb.TaskAssignment(task_id=task_id))


async def test_a_request_behind_a_goaway_goes_to_the_next_connection() -> None:
    leaving = trio.Event()

    async def body(a: AgentClient) -> None:
        async with trio.open_nursery() as asking:
            asking.start_soon(a.request, get("before"))
            await leaving.wait()
            await a.request(get("after"))

    async with scripted(body) as (peer, line):
        before = (await line.asked()).kv_op
        assert before.key == "before"
        await line.say(framing.GoAway(framing.GoAwayReason.DRAINING, 30_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        leaving.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await line.tell(kv=pb.KVResponse(success=True, request_id=before.request_id))
        await line.end()
        again = await peer.accept()
        after = (await again.asked()).kv_op
        assert after.key == "after"
        await again.tell(kv=pb.KVResponse(success=True, request_id=after.request_id))
