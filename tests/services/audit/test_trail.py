"""What a gateway records of its participants, and when."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import trio

from aether_trio.gateway.audit import KEYS_PER_MINUTE
from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status, StatusError
from aether_trio.services.audit.checkpoints import PublicKey, parse_note
from aether_trio.testing.memory import StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    errors,
    kv_get,
    kv_put,
    message_to,
    orchestrator,
    switch_to,
    user,
)

TO: str = "ag::w::a::1"


async def rows(core: Core, world: World, **wanted: Any) -> list[dict[str, Any]]:
    """The rows so far, the oldest first, with `metadata` read."""
    await core.audit.writer.flush()
    names = (
        "event_type", "operation", "actor_type", "actor_id", "resource_type", "resource_id", "workspace",
        "session_id", "gateway_id", "success", "error_message", "metadata",
    )  # fmt: skip
    found = world.databases["tasks"].query(f"SELECT {', '.join(names)} FROM audit_log ORDER BY audit_id")
    made = [dict(zip(names, row, strict=True)) for row in found]
    for row in made:
        row["metadata"] = json.loads(row["metadata"])
    return [row for row in made if all(row[name] == value for name, value in wanted.items())]


async def counted(core: Core, world: World, **wanted: Any) -> int:
    """How many events the rows stand for."""
    return sum(row["metadata"].get("count", 1) for row in await rows(core, world, **wanted))


async def test_a_connection_from_its_proof_to_its_end(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        await barrier(peer)
        [session] = list(core.registry)
    found = await rows(core, world, actor_id="ag::w::a::1")
    assert [row["operation"] for row in found] == ["identity_resolved", "connection_established", "connection_closed"]
    assert {row["actor_type"] for row in found} == {"agent"}
    assert {row["workspace"] for row in found} == {"w"}
    assert {row["session_id"] for row in found[1:]} == {session.session_id}
    assert found[1]["resource_id"] == session.session_id
    assert found[1]["metadata"] == {"peer": "memory:0", "resumed": False, "transport": "memory"}
    assert found[2]["metadata"]["reason"] == "graceful_close"
    assert all(row["success"] for row in found)
    assert all(row["gateway_id"] for row in found)


async def test_the_reason_of_an_end(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        await barrier(peer)
        [session] = list(core.registry)
        session.disconnect("by hand")
        with pytest.raises(StreamEnded):
            while True:
                await peer.receive_message()
    [row] = await rows(core, world, operation="connection_closed")
    assert (row["metadata"]["reason"], row["error_message"], row["success"]) == ("admin_disconnect", "by hand", 1)


async def test_refused_credentials_are_counted_by_address(core: Core, world: World) -> None:
    refused = StatusError(Status.UNAUTHENTICATED, "no such key")

    async def refuse(*_: object) -> None:
        raise refused

    core.hooks.credentials.admit = refuse  # type: ignore[method-assign, assignment]
    for number in range(5):
        hello = agent("w", "a", str(number), credentials={"api_key": "x"})
        async with connect(core, hello, wait_ack=False) as peer:
            with pytest.raises(StreamEnded):
                await peer.receive_message()
    [row] = await rows(core, world, event_type="auth")
    assert (row["operation"], row["success"], row["error_message"]) == ("auth_token_validation", 0, "no such key")
    assert row["metadata"]["status"] == "UNAUTHENTICATED"
    await trio.sleep(61)
    assert await counted(core, world, event_type="auth") == 5
    assert len(await rows(core, world, event_type="auth")) == 2
    assert await rows(core, world, event_type="connection") == []


async def test_while_rows_cannot_be_written_clients_are_refused(core: Core, world: World) -> None:
    queue = world.databases["tasks"].separate_queue(locking=True)
    async with connect(core, agent("w", "a", "1")):
        queue.failing = True
        await trio.sleep(3)
        assert core.audit.writer.failing
    async with connect(core, agent("w", "a", "2"), wait_ack=False) as peer:
        with pytest.raises(StreamEnded, match="UNAVAILABLE: this gateway cannot record"):
            await peer.receive_message()
    queue.failing = False
    async with connect(core, agent("w", "a", "2")):
        assert not core.audit.writer.failing
    assert await counted(core, world, operation="connection_established") == 2


# -- messages --------------------------------------------------------------------------------------


async def test_messages_are_counted_by_route(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as one, connect(core, agent("w", "a", "2")) as two:
        for _ in range(7):
            one.send(message_to("ag::w::a::2", b"12345"))
        two.send(message_to("ag::w::a::1", b"x"))
        await barrier(one, two)
        await trio.sleep(3)
        first = await rows(core, world, operation="message_routed")
        assert Counter((row["actor_id"], row["resource_id"], row["metadata"]["count"]) for row in first) == {
            ("ag::w::a::1", "ag::w::a::2", 7): 1,
            ("ag::w::a::2", "ag::w::a::1", 1): 1,
        }
        for _ in range(100):
            one.send(message_to("ag::w::a::2", b"12345"))
        await barrier(one)
        await trio.sleep(5)
        assert len(await rows(core, world, operation="message_routed")) == 2, "the rest is one row a minute"
        await trio.sleep(61)
        found = await rows(core, world, operation="message_routed", actor_id="ag::w::a::1")
        assert [row["metadata"]["count"] for row in found] == [7, 100]
        await trio.sleep(200)
        assert len(await rows(core, world, operation="message_routed")) == 3, "nothing was sent"


async def test_counts_outlive_routes_and_sessions(core: Core, world: World) -> None:
    """A window that switches its workspace drops its routes; then it ends."""
    async with connect(core, user("u", "1")) as window:
        for workspace in ("v", "w", "v", "w"):
            window.send(switch_to(workspace), message_to("ag::w::a::1", b"x"), message_to("ag::w::a::1", b"x"))
        await barrier(window)
        assert errors(window) == []
    await trio.sleep(70)
    assert await counted(core, world, operation="message_routed", actor_id="u") == 8
    assert await counted(core, world, operation="message_routed", workspace="v") == 4


async def test_counts_are_written_when_the_gateway_stops(world: World) -> None:
    async with world.open() as core, connect(core, agent("w", "a", "1")) as peer:
        for _ in range(3):
            peer.send(message_to("ag::w::a::2", b"x"))
            await barrier(peer)
            await trio.sleep(2)
        assert await counted(core, world, operation="message_routed") == 1
    found = world.databases["tasks"].query(
        "SELECT metadata FROM audit_log WHERE operation = 'message_routed' ORDER BY audit_id"
    )
    assert [json.loads(row[0])["count"] for row in found] == [1, 2]


async def test_refused_messages_are_counted_by_code(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        for _ in range(4):
            peer.send(message_to("nonsense", b"x"))
        await barrier(peer)
        await trio.sleep(3)
        [row] = await rows(core, world, operation="message_route_failed")
        assert (row["resource_id"], row["success"], row["error_message"]) == ("nonsense", 0, "ERR_INVALID_TOPIC")
        for _ in range(4):
            peer.send(message_to("nonsense", b"x"))
        await barrier(peer)
        await trio.sleep(61)
    assert await counted(core, world, operation="message_route_failed") == 8
    assert len(await rows(core, world, operation="message_route_failed")) == 2


async def test_sizes_are_recorded_from_medium_on(world: World) -> None:
    async with world.open(audit={"verbosity": "medium"}) as core, connect(core, agent("w", "a", "1")) as peer:
        peer.send(message_to("ag::w::a::2", b"12345"), message_to("ag::w::a::2", b"123"))
        await barrier(peer)
        await trio.sleep(3)
        [row] = await rows(core, world, operation="message_routed")
        assert row["metadata"] == {"count": 2, "message_size": 8}


# -- operations ------------------------------------------------------------------------------------


async def test_writes_of_keys_are_rows_without_values(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        for _ in range(3):
            peer.send(kv_put("k", b"hunter2"))
            await peer.next("kv")
        peer.send(kv_put("", b"x"))
        await peer.next("kv")
        for number in range(3):
            peer.send(kv_get(str(number)))
            await peer.next("kv")
    await trio.sleep(61)
    puts = await rows(core, world, operation="kv_put", success=1)
    assert [row["metadata"].get("count", 1) for row in puts] == [1, 2]
    assert puts[0]["resource_id"] == "k"
    assert puts[0]["metadata"] == {"key": "k", "new_value_size": 7, "scope": "global", "value_changed": True}
    [refused] = await rows(core, world, operation="kv_put", success=0)
    assert "1 to" in refused["error_message"]
    assert await counted(core, world, operation="kv_get") == 3
    assert {row["resource_type"] for row in await rows(core, world, operation="kv_get")} == {"kv_scope"}
    assert "hunter2" not in str(await rows(core, world))


async def test_a_session_that_writes_many_keys_gets_no_row_for_each(core: Core, world: World) -> None:
    many = KEYS_PER_MINUTE + 50
    async with connect(core, agent("w", "a", "1")) as peer:
        for number in range(many):
            peer.send(kv_put(f"k{number}", b"x"))
            await peer.next("kv")
    await trio.sleep(61)
    assert await counted(core, world, operation="kv_put") == many
    assert len(await rows(core, world, operation="kv_put")) == KEYS_PER_MINUTE + 2


async def test_new_tasks_are_rows_with_their_ids(world: World) -> None:
    async with world.open(audit={"verbosity": "high"}) as core, connect(core, agent("w", "a", "1")) as peer:
        request = pb.CreateTaskRequest(task_type="t", request_id="r", payload=b"the content")
        peer.send(pb.UpstreamMessage(create_task=request))
        made = (await peer.next("create_task")).create_task
        request.workspace = "\0"
        peer.send(pb.UpstreamMessage(create_task=request), pb.UpstreamMessage(create_task=request))
        await peer.next("error")
        await barrier(peer)
        created, refused = await rows(core, world, event_type="task")
        assert (created["resource_id"], created["success"]) == (made.task_id, 1)
        assert (created["metadata"]["content"], created["metadata"]["payload_size"]) == ("the content", 11)
        assert (refused["resource_id"], refused["success"], refused["workspace"]) == ("", 0, "\ufffd")


async def test_a_disconnect_by_an_administrator(core: Core, world: World) -> None:
    async with connect(core, orchestrator("admin", "1")) as peer, connect(core, agent("w", "a", "1")) as other:
        await barrier(other)
        session = next(one for one in core.registry if one.identity.text == "ag::w::a::1")
        op = pb.SessionOperation(
            op=pb.SessionOperation.DISCONNECT, session_id=session.session_id, reason="enough", request_id="r"
        )
        peer.send(pb.UpstreamMessage(session_op=op))
        await peer.next("session_response")
        [row] = await rows(core, world, event_type="admin", operation="admin_session_disconnect")
        assert (row["actor_id"], row["resource_id"], row["metadata"]) == (
            "orc::admin::1",
            session.session_id,
            {"reason": "enough"},
        )


async def test_only_enabled_types_cost_rows(world: World) -> None:
    async with world.open(audit={"event_types": ("task",)}) as core:
        async with connect(core, agent("w", "a", "1")) as peer:
            peer.send(message_to("ag::w::a::1", b"x"), kv_put("k", b"x"))
            peer.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(task_type="t", request_id="r")))
            await peer.next("create_task")
        await trio.sleep(70)
        # Changes of access data are recorded in any case; here those of a new database.
        assert {row["event_type"] for row in await rows(core, world)} == {"task", "acl"}
    async with world.open(audit={"enabled": False}) as core, connect(core, agent("w", "b", "1")) as peer:
        request = pb.SubmitAuditEventRequest(event_type="custom", operation="x", client_request_id="s")
        peer.send(pb.UpstreamMessage(submit_audit_event=request))
        answer = (await peer.next("submit_audit_event_response")).submit_audit_event_response
        assert (answer.success, answer.error_code) == (False, "ERR_AUDIT_DISABLED")
        assert not core.router._fresh_routes
        assert await rows(core, world, actor_id="ag::w::b::1") == []


# -- the log of a gateway --------------------------------------------------------------------------


async def test_starts_and_stops_are_rows_and_heads_are_signed(world: World) -> None:
    calendar = VirtualClock(trio.current_time)
    for _ in range(2):
        async with world.open(clock=calendar) as core:
            await trio.sleep(130)
            assert core.audit.signer.signed >= 1
            assert core.audit.problem is None
    tasks = world.databases["tasks"]
    operations = [
        row[0] for row in tasks.query("SELECT operation FROM audit_log WHERE event_type = 'admin' ORDER BY audit_id")
    ]
    assert operations == ["audit_started", "audit_stopped"] * 2
    heads = tasks.query(
        "SELECT t.origin, t.public_key, t.size, h.size, h.note FROM audit_heads h "
        "JOIN audit_trees t ON t.tree = h.tree ORDER BY h.tree, h.size"
    )
    assert [(size, head) for _, _, size, head, _ in heads if size == head]
    for origin, raw, _, _, note in heads:
        assert PublicKey(origin, raw).has_signed(parse_note(note))
    # The second life has another key, so another tree; its heads name the first one's.
    last = parse_note(heads[-1][-1]).checkpoint
    assert [other.origin for other in last.others] == [heads[0][0]]


async def test_tampering_under_a_gateway_is_told_by_its_health(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        await barrier(peer)
        await trio.sleep(70)
        signed = core.audit.signer.signed
        peer.send(message_to("ag::w::a::1", b"x"))
        await barrier(peer)
        await trio.sleep(3)
        await core.audit.writer.flush()
        world.databases["tasks"].query(
            "UPDATE audit_log SET actor_id = 'x' WHERE operation = 'message_routed' RETURNING 1"
        )
        await trio.sleep(70)
        assert core.audit.signer.signed == signed
        assert "was changed" in (core.audit.problem or "")
