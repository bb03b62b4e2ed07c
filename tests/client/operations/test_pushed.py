"""Test what the gateway starts: events, assignments, revocations, requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from aether_trio.client import AetherError, ConnectionLost, FeedOverflow, PermissionDenied
from aether_trio.client.errors import from_code
from aether_trio.client.operations.enums import AuthorityRequestEventType, TaskStatus
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.progress import Progress
from aether_trio.client.operations.requests import AuthorityRequests, RequestEvent
from aether_trio.client.operations.task_events import ChildChanged, StatusChanged, TaskProgressed
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.workflow import Workflow
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.operations.fake import FakeRequester


def event(subscription_id: str = "sub", **happening: Any) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(
        task_event=pb.TaskEvent(
            task_id="t", emitted_at_unix_ms=1500, subscription_id=subscription_id, workspace="prod", **happening
        )
    )


def following() -> FakeRequester:
    requester = FakeRequester()
    answer = pb.TaskSubscriptionOperationResponse(success=True, subscription_id="sub")
    requester.answers["task_subscription_op"] = answer
    return requester


async def test_a_task_is_followed() -> None:
    requester = following()
    since = datetime(2026, 1, 1, tzinfo=UTC)
    async with Tasks(requester).follow("t", recursive=True, since=since) as events:
        changed = pb.TaskStatusChangedEvent(from_status=1, to_status=2, reason="claimed")
        requester.publish(event(status_changed=changed))
        requester.publish(event("another's", status_changed=changed))
        requester.publish(event(progress=pb.TaskProgressEvent(state="s", progress=0.5, metadata={"a": "b"})))
        requester.publish(event(child_lifecycle=pb.TaskChildLifecycleEvent(child_task_id="c", child_status=3)))
        asked = pb.AuthorityRequestEvent(event_type=2, request=pb.AuthorityRequest(request_id="r"))
        requester.publish(event(authority_request=pb.TaskAuthorityRequestEventRelay(event=asked)))
        requester.publish(event())
        got = [await anext(events) for _ in range(5)]
    assert got[0].event == StatusChanged(from_status=TaskStatus.QUEUED, to_status=TaskStatus.RUNNING, reason="claimed")
    assert got[0].emitted_at == datetime.fromtimestamp(1.5, UTC)
    assert got[1].event == TaskProgressed(state="s", progress=0.5, message="", metadata={"a": "b"})
    assert got[2].event == ChildChanged(child_task_id="c", child_status=TaskStatus.COMPLETED, lifecycle="")
    assert isinstance(got[3].event, RequestEvent)
    assert got[3].event.event_type is AuthorityRequestEventType.APPROVED
    assert got[4].event is None, "a kind of a later protocol"
    subscribe, unsubscribe = (message.task_subscription_op for message in requester.asked)
    assert (subscribe.recursive, subscribe.start_timestamp_unix_ms) == (True, int(since.timestamp() * 1000))
    assert (unsubscribe.op, unsubscribe.subscription_id) == (pb.TaskSubscriptionOperation.UNSUBSCRIBE, "sub")
    assert not requester.feeds.has("task_event")


async def test_events_before_the_subscriptions_answer_are_not_lost() -> None:
    requester = following()

    def answer(_: Any) -> pb.TaskSubscriptionOperationResponse:
        requester.publish(event(progress=pb.TaskProgressEvent(state="early")))
        return pb.TaskSubscriptionOperationResponse(success=True, subscription_id="sub")

    requester.answers["task_subscription_op"] = answer
    async with Tasks(requester).follow("t") as events:
        first = (await anext(events)).event
        assert isinstance(first, TaskProgressed)
        assert first.state == "early"


async def test_a_cut_ends_a_subscription() -> None:
    requester = following()
    async with Tasks(requester).follow("t") as events:
        requester.publish(event(progress=pb.TaskProgressEvent(state="last")))
        requester.feeds.publish("connection_lost", ConnectionLost("cut", in_doubt=True))
        await anext(events)
        with pytest.raises(ConnectionLost):
            await anext(events)


async def test_a_follower_that_does_not_read_is_told() -> None:
    requester = following()
    async with Tasks(requester).follow("t", capacity=2) as events:
        for _ in range(3):
            requester.publish(event(progress=pb.TaskProgressEvent()))
        with pytest.raises(FeedOverflow):
            [one async for one in events]


async def test_a_goodbye_that_fails_does_not_hide_what_happened() -> None:
    requester = following()

    def refuse(op: pb.TaskSubscriptionOperation) -> Any:
        if op.op == pb.TaskSubscriptionOperation.UNSUBSCRIBE:
            raise AetherError("GONE", "the session is over")
        return pb.TaskSubscriptionOperationResponse(success=True, subscription_id="sub")

    requester.answers["task_subscription_op"] = refuse
    with pytest.raises(ZeroDivisionError):
        async with Tasks(requester).follow("t"):
            raise ZeroDivisionError


async def test_work_is_given() -> None:
    requester = FakeRequester()
    async with Tasks(requester).assignments() as assignments, Tasks(requester).hibernations() as hibernations:
        given = pb.TaskAssignment(task_id="t", payload=b"p", launch_params={"auth_token": "secret"}, assigned_at=5)
        requester.publish(pb.DownstreamMessage(task_assignment=given))
        assignment = await anext(assignments)
        assert (assignment.task_id, assignment.payload, assignment.authorization) == ("t", b"p", None)
        assert "secret" not in repr(assignment)
        asleep = pb.TaskHibernated(task_id="t", descriptor=pb.HibernationDescriptor(checkpoint_key="c"))
        requester.publish(pb.DownstreamMessage(task_hibernated=asleep))
        hibernated = await anext(hibernations)
        assert hibernated.hibernation is not None
        assert hibernated.hibernation.checkpoint_key == "c"


async def test_grants_end_and_requests_move_on() -> None:
    requester = FakeRequester()
    async with Grants(requester).revocations() as revocations, AuthorityRequests(requester).events() as events:
        gone = pb.AuthorityGrantRevocation(grant_id="g", cascade=True, revoked_at=5)
        requester.publish(pb.DownstreamMessage(authority_grant_revocation=gone))
        revocation = await anext(revocations)
        assert (revocation.grant_id, revocation.cascade) == ("g", True)
        moved = pb.AuthorityRequestEvent(event_type=1, request=pb.AuthorityRequest(request_id="r", status=1))
        requester.publish(pb.DownstreamMessage(authority_request_event=moved))
        assert (await anext(events)).request.request_id == "r"


async def test_an_engine_answers() -> None:
    requester = FakeRequester()
    workflow = Workflow(requester)
    async with workflow.requests() as requests:
        op = pb.WorkflowOperation(op=pb.WorkflowOperation.GET_RULE, id="r1", request_id="q")
        requester.publish(pb.DownstreamMessage(workflow_op=op))
        assert (await anext(requests)).id == "r1"
        await workflow.respond("q", b"{}", total=1)
        await workflow.respond("q", error="no such rule")
    answers = [message.workflow_response for message in requester.confirmed]
    assert [(a.request_id, a.success, a.error, a.total_count) for a in answers] == [
        ("q", True, "", 1), ("q", False, "no such rule", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("workspace", ["", "*"])
async def test_a_schedule_needs_one_workspace(workspace: str) -> None:
    requester = FakeRequester()
    workflow = Workflow(requester)
    for call in (
        lambda: workflow.list_schedules(workspace),
        lambda: workflow.create_schedule("s", b"{}", workspace=workspace),
        lambda: workflow.upsert_schedule("s", b"{}", workspace=workspace),
        lambda: workflow.delete_schedule("s", workspace=workspace),
    ):
        with pytest.raises(ValueError, match="one workspace"):
            await call()
    assert requester.sent == []


async def test_a_task_is_for_one_or_for_a_pool() -> None:
    requester = FakeRequester()
    tasks = Tasks(requester)
    with pytest.raises(ValueError, match="both a target and a pool"):
        await tasks.create("t", target="ag::prod::planner::1", pool="planner")
    await tasks.create("t")
    await tasks.create("t", target="ag::prod::planner::1", idempotency_key="once")
    await tasks.create("t", pool="planner")
    modes = [message.create_task.assignment_mode for message in requester.asked]
    assert modes == [pb.SELF_ASSIGN, pb.TARGETED, pb.POOL]
    assert requester.idempotent == [False, True, False]


async def test_a_signal_is_sent_again_with_its_key() -> None:
    requester = FakeRequester()
    workflow = Workflow(requester)
    await workflow.signal("x", "go", 1)
    await workflow.signal("x", "go", 1)
    await workflow.signal("x", "go", 1, idempotency_key="once")
    made, other, given = [message.workflow_op.status_filter for message in requester.asked]
    assert made != other, "a second call is another signal"
    assert (len(made), given) == (36, "once")
    assert requester.idempotent == [True] * 3


async def test_a_rotation_is_sent_again_with_its_key() -> None:
    requester = FakeRequester()
    requester.answers["workflow_op"] = pb.WorkflowResponse(success=True, data=b'{"secret": "whsec_1"}')
    workflow = Workflow(requester)
    assert await workflow.rotate_webhook("shop") == "whsec_1"
    await workflow.rotate_webhook("shop")
    await workflow.rotate_webhook("shop", idempotency_key="once")
    await workflow.delete_webhook("shop")
    made, other, given, none = [message.workflow_op.status_filter for message in requester.asked]
    assert made != other, "a second call is another rotation"
    assert (len(made), given, none) == (36, "once", "")
    assert requester.idempotent == [True, True, True, False]


@pytest.mark.parametrize("request_id", ["", "mine"])
async def test_a_refusal_of_what_is_confirmed_is_raised_with_or_without_an_id(request_id: str) -> None:
    requester = FakeRequester()

    def refuse(message: pb.UpstreamMessage) -> None:
        error = from_code("ERR_INVALID_PRINCIPAL", "no")
        error.request_id = request_id
        if not request_id:
            raise error  # as the barrier finds it
        requester.feeds.publish("error", from_code("ERR_INTERNAL", "about something else"))
        requester.feeds.publish("error", error)

    requester.on_tell = refuse
    with pytest.raises(PermissionDenied):
        await Progress(requester).report("t", request_id=request_id, confirm=True)


async def test_a_wait_for_events_can_be_cancelled() -> None:
    requester = following()
    with trio.CancelScope() as scope:
        async with Tasks(requester).follow("t") as events:
            scope.cancel()
            await anext(events)
    assert len(requester.asked) == 2, "the subscription was not ended"
