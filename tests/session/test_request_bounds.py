"""Every field of a request has a bound, and a request beyond it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES, KIB, MIB, Limits
from aether_trio.session.request_bounds import CHECKED_BY_OPERATION, excess_of
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.delivery import varint
from aether_trio.wire.error_response import ANSWERS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect
from tests.session.payloads import Path, is_map, leaves, put, received, spelled

ONE = "ag::w::a::1"
CASES = [
    field.name
    for field in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields
    if field.name not in {"init", "send"}
]
LONG = 2 * MIB


def texts(descriptor: Descriptor) -> Iterator[Path]:
    """Return the path to each text in a message."""
    for path in leaves(descriptor):
        last = path[-1].message_type.fields_by_name["value"] if is_map(path[-1]) else path[-1]
        if last.type == FieldDescriptor.TYPE_STRING:
            yield path


def with_text(case: str, path: Path, text: str) -> pb.UpstreamMessage:
    """A request of this case in which one text is set."""
    message = pb.UpstreamMessage()
    getattr(message, case).SetInParent()
    put(getattr(message, case), path, ("key", text) if is_map(path[-1]) else text)
    return message


@pytest.mark.parametrize("case", CASES)
async def test_no_text_of_a_request_is_taken_at_any_length(peer: MemoryLink, case: str) -> None:
    descriptor = pb.UpstreamMessage.DESCRIPTOR.fields_by_name[case].message_type
    for path in texts(descriptor):
        request = with_text(case, path, "x" * LONG)
        judged = path[-1].full_name in CHECKED_BY_OPERATION
        assert (excess_of(getattr(request, case)) is None) is judged, spelled(path)
        peer.send(request)
        await barrier(peer)
        answers = [one for one in received(peer) if not one.checkpoint.request_id.startswith("barrier")]
        for answer in answers:
            assert answer.ByteSize() < 16 * KIB, f"{case}.{spelled(path)} was answered at length"
        if not judged:
            assert "at most" in str(answers), f"{case}.{spelled(path)}: {answers}"


@pytest.mark.parametrize("case", sorted(ANSWERS))
async def test_a_refusal_is_typed_and_has_the_id_of_its_request(peer: MemoryLink, case: str) -> None:
    descriptor = pb.UpstreamMessage.DESCRIPTOR.fields_by_name[case].message_type
    ids = [name for name in ("client_request_id", "request_id", "tunnel_id") if name in descriptor.fields_by_name]
    request = pb.UpstreamMessage()
    payload = getattr(request, case)
    # An unknown field counts, too.
    payload.MergeFromString(b"\xfa\x7f" + varint(300 * KIB) + bytes(300 * KIB))
    setattr(payload, ids[0], "mine")
    peer.send(request)
    answer = getattr(await peer.next(ANSWERS[case]), ANSWERS[case])
    assert getattr(answer, ids[0]) == "mine"
    assert not getattr(answer, "success", False)
    await barrier(peer)


async def test_an_id_at_the_bound_is_echoed_and_one_beyond_it_is_not(peer: MemoryLink) -> None:
    for size, echoed in ((Limits.name_bytes, True), (Limits.name_bytes + 1, False)):
        query = pb.TaskQuery(op=pb.TaskQuery.LIST, request_id="i" * size)
        peer.send(pb.UpstreamMessage(task_query=query))
        answer = (await peer.next("task_query")).task_query
        assert answer.success is echoed
        assert (answer.request_id == query.request_id) is echoed


async def made(peer: MemoryLink) -> str:
    task = pb.CreateTaskRequest(task_type="t", workspace="w", request_id="1")
    peer.send(pb.UpstreamMessage(create_task=task))
    return (await peer.next("create_task")).create_task.task_id


async def operate(peer: MemoryLink, **fields: Any) -> pb.TaskOperationResponse:
    peer.send(pb.UpstreamMessage(task_op=pb.TaskOperation(request_id="2", **fields)))
    return (await peer.next("task_op")).task_op


async def test_a_stored_wait_has_a_bound_and_its_task_can_be_read(peer: MemoryLink) -> None:
    task_id = await made(peer)
    wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, input_match={"k": "v" * (5 * MIB)})
    paused = await operate(peer, op=pb.TaskOperation.PAUSE, task_id=task_id, wait_spec=wait)
    assert (paused.success, paused.request_id) == (False, "2")
    assert f"at most {Limits.request_bytes} are allowed" in paused.error
    query = pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id="3")
    peer.send(pb.UpstreamMessage(task_query=query))
    assert (await peer.next("task_query")).task_query.success


async def test_a_failure_with_a_long_reason_is_a_failure(peer: MemoryLink) -> None:
    reason = "Traceback: " + "x" * MIB
    failed = await operate(peer, op=pb.TaskOperation.FAIL, task_id=await made(peer), reason=reason)
    assert failed.success, failed.error


@pytest.mark.parametrize("case", ["kv_op", "task_query", "agent_op"])
async def test_an_answer_that_is_too_large_is_a_refusal(core: Core, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    answer = ANSWERS[case]

    async def too_much(session: Session, payload: Any) -> list[pb.DownstreamMessage]:
        message = pb.DownstreamMessage()
        response = getattr(message, answer)
        response.success, response.request_id = True, payload.request_id
        if answer == "kv":
            response.value = bytes(CLIENT_MESSAGE_BYTES)
        elif answer == "agent":
            response.message = "x" * CLIENT_MESSAGE_BYTES
        else:
            response.next_page_token = "x" * CLIENT_MESSAGE_BYTES
        return [message]

    monkeypatch.setitem(core.dispatcher._handlers, case, too_much)
    async with connect(core, agent("w", "a", "1")) as peer:
        request = pb.UpstreamMessage()
        getattr(request, case).request_id = "mine"
        peer.send(request)
        refused = getattr(await peer.next(answer), answer)
        assert (refused.success, refused.request_id) == (False, "mine")
        if answer == "task_query":
            assert "more than a client takes" in refused.error
        else:
            error = (await peer.next("error")).error
            assert (error.request_id, error.retryable) == ("mine", False)
            assert error.code == (Code.KV_ERROR if answer == "kv" else Code.PAYLOAD_TOO_LARGE)


@pytest.mark.parametrize("count", [Limits.numbers, Limits.numbers + 1, 60_000])
@pytest.mark.parametrize(
    ("case", "name", "path"),
    [
        ("create_task", "schedule_ms", "retry_policy"),
        ("create_task", "retryable_status_codes", "retry_policy"),
        ("create_task", "on_statuses", "completion_event"),
        ("task_query", "statuses", "filter"),
        ("task_query", "exclude_statuses", "filter"),
        ("task_query", "exclude_task_classes", "filter"),
    ],
)
def test_a_list_of_numbers_has_a_bound(case: str, name: str, path: str, count: int) -> None:
    request = pb.UpstreamMessage()
    getattr(getattr(getattr(request, case), path), name).extend([1] * count)
    excess = excess_of(getattr(request, case))
    if count <= Limits.numbers:
        assert excess is None
    else:
        assert excess == f"{path}.{name} has {count} numbers; at most {Limits.numbers} are allowed"


def test_there_is_no_other_list_of_numbers() -> None:
    found = set()
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            if field.is_repeated and field.cpp_type not in (
                FieldDescriptor.CPPTYPE_STRING,
                FieldDescriptor.CPPTYPE_MESSAGE,
            ):
                found.add(f"{message.name}.{field.name}")
    assert found == {
        "RetryPolicy.schedule_ms", "RetryPolicy.retryable_status_codes", "TaskCompletionEvent.on_statuses",
        "TaskFilter.statuses", "TaskFilter.exclude_statuses", "TaskFilter.exclude_task_classes",
    }  # fmt: skip
