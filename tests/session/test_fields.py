"""Any number and text in any request gets a typed answer, and fails nothing later."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import trio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from structlog.testing import capture_logs

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code, Status
from aether_trio.services.unimplemented import FAILURES
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.error_response import ANSWERS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, orchestrator
from tests.session.payloads import Path, is_map, leaves, put, received, spelled

PAYLOADS = {one.name: one.message_type for one in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}
CASES = [name for name in PAYLOADS if name != "init"]

_INT64 = (2**63 - 1, -(2**63), 2**62, 2**53 + 1, -1, 1)
_INT32 = (2**31 - 1, -(2**31), -1, 1)
_UINT32 = (2**32 - 1, 1)
_DOUBLE = (float("nan"), float("inf"), float("-inf"), 1.7e308, 5e-324, -1.0)
_TEXTS = (
    "9" * 1_000,
    "-9",
    "²",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\x00",
    "%_\\'\"",
    "::",
    "@" + "9" * 9,
    "\U0001f600" * 200,
    base64.urlsafe_b64encode(b"9" * 700 + b"|x").rstrip(b"=").decode(),
    base64.urlsafe_b64encode(b"|\x00").rstrip(b"=").decode(),
)
_LONG_TEXTS = (*_TEXTS, "9" * 5_000, "9" * 19, "1e9")
_KEYS = ("schedule_to_start_ms", "start_to_close_ms", "heartbeat_timeout_ms", "schedule_to_close_ms", "profile", "\x00")
_NUMBERS: dict[int, Sequence[Any]] = {
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_DOUBLE: _DOUBLE,
    FieldDescriptor.TYPE_ENUM: (2**31 - 1, -1, 1, 2, 3, 4),
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"\x00", b"\xff" * 300),
    FieldDescriptor.TYPE_BOOL: (True,),
}

BOTH = "sqlite", "postgres"
REQUIRED = ("key", "implementation", "specifier", "session_id")

_ids = count(1)


def engines_of(case: str) -> Sequence[str]:
    """Both where a value may be stored; what is not built stores nothing."""
    return BOTH[:1] if case in FAILURES else BOTH


def is_stored(core: Core, op: int, path: Path) -> bool:
    """Whether a field may reach the database: of a wait only where one begins."""
    waits = op in (pb.TaskOperation.PAUSE, pb.TaskOperation.WAIT_FOR)
    return path[0].name != "wait_spec" or waits or not core.tasks.engine.database.shared


def settings_of(field: FieldDescriptor) -> list[Any]:
    """What a field is set to, one after the other; for a map (key, value)."""
    if not is_map(field):
        assert field.type in _NUMBERS, f"no values for {field.full_name}"
        return list(_NUMBERS[field.type])
    value = field.message_type.fields_by_name["value"]
    values = _LONG_TEXTS if value.type == FieldDescriptor.TYPE_STRING else _NUMBERS[value.type]
    return [(key, one) for key in _KEYS for one in values]


def operations(case: str, descriptor: Descriptor) -> list[int]:
    """Its operations, of those that are built; any one of the others."""
    field = descriptor.fields_by_name.get("op")
    if field is None or field.type != FieldDescriptor.TYPE_ENUM:
        return [0]
    return [one.number for one in field.enum_type.values] if case not in FAILURES else [0]


def id_field(descriptor: Descriptor) -> str:
    names = [name for name in ("client_request_id", "request_id") if name in descriptor.fields_by_name]
    return names[0] if names else ""


def filled(case: str, path: Path, value: Any, **fields: Any) -> pb.UpstreamMessage:
    """A request with an id and these fields; the one at `path` has this value."""
    request = pb.UpstreamMessage()
    if name := id_field(PAYLOADS[case]):
        fields[name] = f"field-{next(_ids)}"
    getattr(request, case).CopyFrom(type(getattr(request, case))(**fields))
    getattr(request, case).SetInParent()
    put(getattr(request, case), path, value)
    return request


def check_logs(logs: Sequence[Any], what: str) -> None:
    bad = [entry for entry in logs if entry["log_level"] in ("error", "critical") or entry.get("exc_info")]
    assert not bad, f"{what}: {bad}"


async def ask(peer: MemoryLink, case: str, requests: list[pb.UpstreamMessage], what: str) -> None:
    with capture_logs() as logs:
        peer.send(*requests)
        await barrier(peer)
    check_logs(logs, what)
    answers = received(peer)
    failed = [one.error for one in answers if one.error.code == Code.INTERNAL or "inside the gateway" in str(one)]
    assert not failed, f"{what}: {failed}"
    name = id_field(PAYLOADS[case])
    if not name or case not in ANSWERS:
        return
    seen = [getattr(getattr(one, ANSWERS[case]), name, "") for one in answers if one.HasField(ANSWERS[case])]
    seen += [one.error.request_id for one in answers]
    for request in requests:
        request_id = getattr(getattr(request, case), name)
        if request_id.startswith("field-"):
            assert request_id in seen, f"{what}: no typed answer to {getattr(request, case)}"


@pytest.mark.parametrize(
    ("case", "store"), [(case, engine) for case in CASES for engine in engines_of(case)], indirect=["store"]
)
async def test_every_field_of_every_request_is_answered(core: Core, case: str) -> None:
    descriptor = PAYLOADS[case]
    hello = orchestrator("o", "1") if case == "agent_op" else agent("w", "a", "1")
    async with connect(core, hello) as peer:
        for op in operations(case, descriptor):
            fixed: dict[str, Any] = {name: "k" for name in REQUIRED if name in descriptor.fields_by_name}
            fixed |= {"op": op} if op else {}
            for path in leaves(descriptor):
                if (spelled(path) == "op" and op) or (case == "task_op" and not is_stored(core, op, path)):
                    continue
                requests = [filled(case, path, value, **fixed) for value in settings_of(path[-1])]
                await ask(peer, case, requests, f"{case} {op} {spelled(path)}")
        assert peer.ended is None


OPERATIONS = pb.TaskOperation.OpType.items()


async def begun(peer: MemoryLink, how_many: int, **fields: Any) -> list[str]:
    """So many tasks that this participant has given itself."""
    for _ in range(how_many):
        fields = {"task_type": "t", "request_id": f"begun-{next(_ids)}", **fields}
        peer.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(**fields)))
    await barrier(peer)
    return [one.create_task.task_id for one in received(peer) if one.HasField("create_task")]


async def test_every_field_of_an_operation_on_a_task_that_runs(core: Core, peer: MemoryLink) -> None:
    """Also with every reason to wait, and long after."""
    for word, op in OPERATIONS:
        await ask_for_operation(core, peer, word, op)
    await be_well(peer)


async def ask_for_operation(core: Core, peer: MemoryLink, word: str, op: int) -> None:
    waits = pb.WaitReason.values() if op == pb.TaskOperation.PAUSE else [0]
    for reason in waits:
        for path in leaves(pb.TaskOperation.DESCRIPTOR):
            if spelled(path) in ("op", "task_id", "wait_spec.reason") or not is_stored(core, op, path):
                continue
            values = settings_of(path[-1])
            tasks = await begun(peer, len(values))
            requests = [
                pb.UpstreamMessage(task_op=pb.TaskOperation(op=pb.TaskOperation.CLAIM, task_id=task_id))
                for task_id in tasks
                if op != pb.TaskOperation.CLAIM
            ]
            fixed: dict[str, Any] = {"op": op}
            if op in (pb.TaskOperation.PAUSE, pb.TaskOperation.WAIT_FOR):
                fixed["wait_spec"] = pb.WaitSpec(reason=pb.WaitReason.ValueType(reason))
            for task_id, value in zip(tasks, values, strict=True):
                requests.append(filled("task_op", path, value, task_id=task_id, **fixed))
            await ask(peer, "task_op", requests, f"{word} {reason} {spelled(path)}")


async def be_well(peer: MemoryLink) -> None:
    """What was stored does not fail when its moment comes, or when it is read."""
    with capture_logs() as logs:
        await trio.sleep(3_700)
        token, pages = "", 0
        while token or not pages:
            query = pb.TaskQuery(op=pb.TaskQuery.LIST, request_id=f"list-{next(_ids)}")
            query.filter.limit, query.filter.page_token = 1_000, token
            peer.send(pb.UpstreamMessage(task_query=query))
            await barrier(peer)
            (page,) = [one.task_query for one in received(peer) if one.task_query.request_id == query.request_id]
            assert page.success, page.error
            token, pages = page.next_page_token, pages + 1
            assert pages < 1_000, "a list without an end"
    check_logs(logs, "later")
    assert peer.ended is None


async def test_every_field_of_a_creation_whose_task_fails(peer: MemoryLink) -> None:
    """Deadlines and retry policies are used when a task begins and when it fails."""
    for backoff in pb.BackoffStrategy.values():
        for path in leaves(pb.CreateTaskRequest.DESCRIPTOR):
            if backoff and path[0].name != "retry_policy":
                continue
            policy = pb.RetryPolicy(backoff=pb.BackoffStrategy.ValueType(backoff), max_attempts=9)
            fixed: dict[str, Any] = {"task_type": "t", "retry_policy": policy}
            peer.send(*(filled("create_task", path, value, **fixed) for value in settings_of(path[-1])))
            await barrier(peer)
            tasks = [one.create_task.task_id for one in received(peer) if one.create_task.success]
            for op in (pb.TaskOperation.CLAIM, pb.TaskOperation.FAIL, pb.TaskOperation.RETRY):
                moves = [
                    pb.UpstreamMessage(
                        task_op=pb.TaskOperation(op=op, task_id=task_id, request_id=f"field-{next(_ids)}")
                    )
                    for task_id in tasks
                ]
                await ask(peer, "task_op", moves, f"{op} after {backoff} {spelled(path)}")
    await be_well(peer)


async def test_every_field_of_a_subscription_to_a_task(peer: MemoryLink) -> None:
    (task_id,) = await begun(peer, 1)
    for path in leaves(pb.TaskSubscriptionOperation.DESCRIPTOR):
        if spelled(path) in ("op", "task_id"):
            continue
        follow = {"op": pb.TaskSubscriptionOperation.SUBSCRIBE, "task_id": task_id}
        requests = [filled("task_subscription_op", path, value, **follow) for value in settings_of(path[-1])]
        await ask(peer, "task_subscription_op", requests, spelled(path))


async def test_every_field_of_a_first_message(core: Core) -> None:
    """A refusal names what is wrong, and is none of the gateway's own failures."""
    for path in leaves(pb.InitConnection.DESCRIPTOR):
        for value in settings_of(path[-1]):
            hello = pb.UpstreamMessage()
            hello.CopyFrom(agent("w", "a", "1"))
            put(hello.init, path, value)
            with capture_logs() as logs:
                async with connect(core, hello, wait_ack=False) as peer:
                    peer.finish()
                    ended = await peer.wait_end()
            assert ended.status not in (Status.INTERNAL, Status.UNKNOWN), f"{spelled(path)}: {ended}"
            check_logs(logs, f"init {spelled(path)} {value!r}")
