"""A zero byte in a request is refused or stored, alike on each engine."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    open_world,
    orchestrator,
    run_in_virtual_time,
)
from tests.helpers.direct import PostgresStore, SqliteStore, Store

BAD: Final = "a\0b"
IDS: Final = frozenset({"request_id", "client_request_id"})
"""Echoed, and nothing else."""

OPERATIONS: Final[list[tuple[str, Any, dict[str, Any]]]] = [
    ("checkpoint_op", pb.CheckpointOperation, {"key": "k"}),
    ("task_op", pb.TaskOperation, {"task_id": "none", "wait_spec": pb.WaitSpec(depends_on=["x"])}),
    ("task_query", pb.TaskQuery, {"task_id": "none"}),
    ("session_op", pb.SessionOperation, {"session_id": "none"}),
    ("agent_op", pb.AgentOperation, {"implementation": "i", "agent": pb.AgentRegistrationInfo(implementation="i")}),
    ("task_subscription_op", pb.TaskSubscriptionOperation, {"task_id": "none"}),
]


def requests() -> Iterator[pb.UpstreamMessage]:
    """One of each operation, as it could be right."""
    for kind in pb.KVOperation.OpType.values():
        for scope in pb.KVOperation.Scope.values():
            fields: dict[str, Any] = {"key": "k", "user_id": "u", "workspace": "w", "value": b"1"}
            yield pb.UpstreamMessage(kv_op=pb.KVOperation(op=kind, scope=scope, **fields))
    for case, operation, fields in OPERATIONS:
        for kind in operation.OpType.values():
            yield pb.UpstreamMessage(**{case: operation(op=kind, **fields)})
    for mode in pb.TaskAssignmentMode.values():
        yield pb.UpstreamMessage(
            create_task=pb.CreateTaskRequest(
                task_type="t",
                workspace="w",
                assignment_mode=mode,
                target_implementation="i",
                target_agent_id="ag::w::i::1" if mode == pb.TARGETED else "",
            )
        )
    yield pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::w::i::1"))
    yield pb.UpstreamMessage(progress=pb.ProgressReport(task_id="none", state="s", recipient="us::u::w"))
    yield pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id="w"))
    principal = pb.PrincipalRef(principal_type="agent", principal_id="ag::w::i::1")
    yield pb.UpstreamMessage(connection_status_request=pb.ConnectionStatusRequest(principal=principal))


def spoiled(message: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Give (field, copy of the message) for each text, with a zero byte in that text."""
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if name in IDS:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            other = deepcopy(message)
            if field.is_repeated:
                getattr(other, name).append(BAD)
            else:
                setattr(other, name, BAD)
            yield name, other
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.type == FieldDescriptor.TYPE_STRING:
                for pair in (("k", BAD), (BAD, "v")):
                    other = deepcopy(message)
                    getattr(other, name)[pair[0]] = pair[1]
                    yield f"{name}[{pair[0]!r}]", other
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated and depth:
            for path, part in spoiled(getattr(message, name), depth - 1):
                other = deepcopy(message)
                getattr(other, name).CopyFrom(part)
                yield f"{name}.{path}", other


def cases() -> Iterator[tuple[str, pb.UpstreamMessage]]:
    for message in requests():
        name = message.WhichOneof("payload")
        payload = getattr(message, name)
        for path, part in spoiled(payload):
            case = f"{name} {getattr(payload, 'op', '')} {getattr(payload, 'scope', '')} {path}"
            yield case, pb.UpstreamMessage(**{name: part})


def shape(message: pb.DownstreamMessage) -> tuple[str, Any]:
    """What does not differ from one run to the next."""
    name = message.WhichOneof("payload")
    answer = getattr(message, name)
    if name == "error":
        return name, answer.code
    return name, getattr(answer, "success", None)


async def answers(peer: MemoryLink, message: pb.UpstreamMessage) -> list[tuple[str, Any]]:
    peer._downstream.clear()
    peer.send(message)
    await barrier(peer)
    return [shape(one) for one in peer._downstream if not one.checkpoint.request_id.startswith("barrier")]


async def run(store: Store) -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    limits = {"send_rate_per_s": 0, "workspace_rate_per_s": 0, "identity_rate_per_s": 0}
    with open_world(store) as world:
        async with (
            deadlock_is_an_error(),
            world.open(limits=limits) as core,
            connect(core, agent("w", "a", "1")) as one,
            connect(core, orchestrator("o", "1")) as other,
        ):
            for case, message in cases():
                found[f"agent: {case}"] = await answers(one, message)
                if not case.startswith(("kv_op", "checkpoint_op")):
                    found[f"orchestrator: {case}"] = await answers(other, message)
    return found


def test_each_text_of_each_request(postgres_store: PostgresStore) -> None:
    in_file = run_in_virtual_time(lambda: run(SqliteStore()))
    on_server = run_in_virtual_time(lambda: run(postgres_store))
    assert len(in_file) > 500
    for found in (in_file, on_server):
        assert [case for case, shapes in found.items() if ("error", "ERR_INTERNAL") in shapes] == []
    differ = {case: (shapes, on_server[case]) for case, shapes in in_file.items() if shapes != on_server[case]}
    assert differ == {}
