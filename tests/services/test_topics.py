"""Topics by `workspace_op`: what they hold, who reads them, who may, and purges."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.log.topic_overview import MAX_COUNTED
from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code
from aether_trio.services import topics as topics_module
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import put
from tests.helpers.core import World, agent, barrier, connect, kv_get, message_to, orchestrator, payloads

Op = pb.WorkspaceOperation
_numbers = count(1)


async def ask(peer: MemoryLink, what: str, workspace: str = "", limit: int = 0, **given: str) -> pb.WorkspaceResponse:
    request_id = f"r{next(_numbers)}"
    op = Op(
        op=Op.GET_MESSAGE_FLOW,
        request_id=request_id,
        workspace_id=workspace,
        workspace=pb.WorkspaceInfo(metadata={"_topics": what} | {f"_{name}": text for name, text in given.items()}),
        filter=pb.WorkspaceFilter(limit=limit),
    )
    peer.send(pb.UpstreamMessage(workspace_op=op))
    answer = (await peer.next("workspace")).workspace
    assert answer.request_id == request_id
    return answer


async def done(peer: MemoryLink, what: str, workspace: str = "", limit: int = 0, **given: str) -> pb.WorkspaceResponse:
    answer = await ask(peer, what, workspace, limit, **given)
    assert answer.success, answer.error
    assert answer.workspace.metadata["_topics"] == what
    return answer


async def refused(peer: MemoryLink, code: Code, what: str, workspace: str = "", **given: str) -> str:
    answer = await ask(peer, what, workspace, **given)
    assert not answer.success
    assert answer.error.startswith(f"{code}: "), answer.error
    await peer.next("error")
    return answer.error


def facts(answer: pb.WorkspaceResponse) -> Mapping[str, Any]:
    [node] = answer.message_flow.nodes
    found: Mapping[str, Any] = json.loads(node.label)
    return found


def names(answer: pb.WorkspaceResponse) -> list[str]:
    return [node.id for node in answer.message_flow.nodes]


@pytest.fixture
async def admin(core: Core) -> AsyncIterator[MemoryLink]:
    async with connect(core, orchestrator("o", "1")) as peer:
        yield peer


async def test_a_topic_with_its_consumers(core: Core, admin: MemoryLink, world: World) -> None:
    async with connect(core, agent("w", "sender", "1")) as sender:
        async with connect(core, agent("w", "a", "1")) as reader:
            for number in range(3):
                sender.send(message_to("ag::w::a::1", b"x" * 10 * number))
            await barrier(sender, reader)
            assert len(payloads(reader)) == 3
        for _ in range(4):
            sender.send(message_to("ag::w::a::1", b"later"))
        await barrier(sender)
    shown = await done(admin, "show", topic="ag::w::a::1")
    held = facts(shown)
    assert (held["messages"], held["first"], held["last"], held["consumers"]) == (7, 1, 7, 1)
    [(stored,)] = world.log.query("SELECT SUM(LENGTH(data)) FROM messages")
    assert held["bytes"] == stored
    assert 0 < held["oldest_ms"] <= held["newest_ms"]
    [edge] = shown.message_flow.edges
    assert (getattr(edge, "from"), edge.to, edge.count) == ("ag::w::a::1", "ag::w::a::1", 4)
    assert json.loads(edge.label)["position"] == 3
    assert held["most_behind"] == 4
    assert "no message was ever sent" in await refused(admin, Code.INVALID_TOPIC, "show", topic="ag::w::b::1")


async def test_lists_have_the_topics_of_a_workspace_in_pages(admin: MemoryLink, world: World) -> None:
    of_w = ["ag::w::a::1", "ag::w::b::1", "ga::w", "gu::w", "tb::w::x", "tu::w::x::1", "uw::ann::w", "uw::bob::w"]
    others = ["ag::w-2::a::1", "ag::v::a::1", "ga::w2", "us::ann::1", "uw::ann::v", "sv::s::1"]
    for name in of_w + others:
        world.log.query(f"INSERT INTO topics (name) VALUES ('{name}') RETURNING id")
    found = names(await done(admin, "list", "w"))
    assert found == sorted(of_w)
    every = names(await done(admin, "list"))
    assert every == sorted(of_w + others)
    assert names(await done(admin, "list", "w", prefix="ag::w::b")) == ["ag::w::b::1"]
    for workspace, all_of_it in (("w", found), ("", every)):
        paged: list[str] = []
        after = ""
        while True:
            page = await done(admin, "list", workspace, limit=2, after=after)
            assert len(page.message_flow.nodes) <= 2
            paged += names(page)
            after = page.workspace.metadata.get("_after", "")
            if not after:
                break
        assert paged == all_of_it


async def test_names_of_other_workspaces_are_looked_at_in_bounded_steps(
    core: Core, admin: MemoryLink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics_module, "MAX_NAMES", 3)
    for number in range(10):
        name = f"uw::user{number}::{'w' if number == 7 else 'v'}"
        world.log.query(f"INSERT INTO topics (name) VALUES ('{name}') RETURNING id")
    after, pages, found = "", 0, []
    while True:
        page = await done(admin, "list", "w", after=after)
        found += names(page)
        after = page.workspace.metadata.get("_after", "")
        pages += 1
        if not after:
            break
    assert found == ["uw::user7::w"]
    assert pages == 4


async def test_many_consumers_are_counted_up_to_a_limit(core: Core, admin: MemoryLink, world: World) -> None:
    [(topic_id,)] = world.log.query("INSERT INTO topics (name) VALUES ('ga::w') RETURNING id")
    rows = ", ".join(f"({topic_id}, 'ag::w::a::{number:05}', 0, 1)" for number in range(MAX_COUNTED + 5))
    world.log.query(f"INSERT INTO cursors (topic_id, consumer, msg_offset, updated_ms) VALUES {rows} RETURNING 1")
    [node] = (await done(admin, "list", "w")).message_flow.nodes
    assert json.loads(node.label)["consumers"] == MAX_COUNTED + 1
    seen: list[str] = []
    after = ""
    while True:
        page = await done(admin, "show", topic="ga::w", limit=500, after=after)
        seen += [edge.to for edge in page.message_flow.edges]
        after = page.workspace.metadata.get("_after", "")
        if not after:
            break
    assert len(seen) == len(set(seen)) == MAX_COUNTED + 5


async def test_a_purge_deletes_what_was_there_and_no_more(core: Core, admin: MemoryLink) -> None:
    async with connect(core, agent("w", "sender", "1")) as sender:
        for number in range(5):
            sender.send(message_to("ag::w::a::1", b"%d" % number))
        await barrier(sender)
        purged = await done(admin, "purge", topic="ag::w::a::1", through="3")
        assert (purged.workspace.metadata["_purged"], "_more" in purged.workspace.metadata) == ("3", False)
        held = facts(purged)
        assert (held["messages"], held["first"], held["last"]) == (2, 4, 5)
        again = await done(admin, "purge", topic="ag::w::a::1", through="3")
        assert again.workspace.metadata["_purged"] == "0", "the same request deletes nothing more"
        everything = await done(admin, "purge", topic="ag::w::a::1", through="999")
        assert everything.workspace.metadata["_purged"] == "2"
        assert facts(everything)["messages"] == facts(everything)["bytes"] == 0
        sender.send(message_to("ag::w::a::1", b"new"))
        await barrier(sender)
        held = facts(await done(admin, "show", topic="ag::w::a::1"))
        assert (held["messages"], held["first"], held["last"]) == (1, 6, 6)
        async with connect(core, agent("w", "a", "1")) as reader:
            await barrier(reader)
            assert payloads(reader)[-1:] == [b"new"]


async def test_a_long_purge_goes_on_with_the_next_request(
    core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_trio.log.retention.ROWS_PER_STEP", 2)
    monkeypatch.setattr(topics_module, "PURGE_S", 0.0)
    async with connect(core, agent("w", "sender", "1")) as sender:
        for _ in range(3):
            sender.send(message_to("ag::w::a::1", b"x"))
        await barrier(sender)
    answer = await done(admin, "purge", topic="ag::w::a::1", through="3")
    assert (answer.workspace.metadata["_purged"], answer.workspace.metadata["_more"]) == ("0", "true")


async def test_who_may(world: World) -> None:
    async with world.open(access={"default": "closed"}) as core, connect(core, agent("w", "a", "1")) as reader:
        reader.send(message_to("ag::w::a::1", b"x"))
        await barrier(reader)
        put(core.authorizer.index, "agent", "ag::w::a::1", "workspace", "w", AccessLevel.READ)
        assert names(await done(reader, "list", "w")) == ["ag::w::a::1"]
        await done(reader, "show", topic="ag::w::a::1")
        await refused(reader, Code.PERMISSION_DENIED, "purge", topic="ag::w::a::1", through="1")
        await refused(reader, Code.PERMISSION_DENIED, "list")
        await refused(reader, Code.PERMISSION_DENIED, "list", "v")
        await refused(reader, Code.PERMISSION_DENIED, "show", topic="ag::v::a::1")
        await refused(reader, Code.PERMISSION_DENIED, "show", topic="us::ann::1")


async def test_a_purge_is_in_the_audit_log(world: World) -> None:
    async with world.open(audit={"enabled": True}) as core, connect(core, orchestrator("o", "1")) as admin:
        admin.send(message_to("ag::w::a::1", b"x"))
        await barrier(admin)
        await done(admin, "purge", topic="ag::w::a::1", through="1")
        core.audit.fold()
        await trio.sleep(5)
        rows = world.databases["tasks"].query(
            "SELECT actor_id, resource_id, workspace, metadata FROM audit_log WHERE operation = 'admin_topic_purge'"
        )
    [(actor, resource, workspace, metadata)] = rows
    assert (actor, resource, workspace) == ("orc::o::1", "ag::w::a::1", "w")
    assert json.loads(metadata) == {"messages": 1, "through": 1}


async def test_names_with_control_characters_are_listed_shown_and_purged(world: World) -> None:
    hostile = "ag::w::a\x9b\u202e::1"
    async with (
        world.open(gateway={"strict_identifier_charset": False}) as core,
        connect(core, agent("w", "a", "1")) as sender,
        connect(core, orchestrator("o", "1")) as admin,
    ):
        sender.send(message_to(hostile, b"x"))
        sender.send(message_to("ag::w::b::1", b"x"))
        await barrier(sender)
        first = await done(admin, "list", "w", 1)
        assert names(first) == [hostile]
        second = await done(admin, "list", "w", 1, after=first.workspace.metadata["_after"])
        assert names(second) == ["ag::w::b::1"]
        assert facts(await done(admin, "show", topic=hostile))["messages"] == 1
        purged = await done(admin, "purge", topic=hostile, through="1")
        assert purged.workspace.metadata["_purged"] == "1"


@pytest.mark.parametrize("through", ["", "x", "-1", "9" * 19])
async def test_bad_requests(admin: MemoryLink, through: str) -> None:
    await refused(admin, Code.INVALID_ARGUMENT, "purge", topic="ag::w::a::1", through=through)
    await refused(admin, Code.INVALID_ARGUMENT, "explode")
    await refused(admin, Code.INVALID_TOPIC, "show", topic="nonsense")
    await refused(admin, Code.INVALID_IDENTIFIER, "list", "a b")
    await refused(admin, Code.INVALID_ARGUMENT, "list", "w", prefix="a\u0000b")
    await refused(admin, Code.INVALID_ARGUMENT, "list", "w", after="x" * 300)


async def test_many_lists_at_a_time_delay_no_other_client(
    core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is read at a time, and written in pieces."""
    active, most = 0, 0
    one_list = topics_module.TopicService._list

    async def counted(*arguments: Any) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await one_list(*arguments)
        active -= 1

    monkeypatch.setattr(topics_module.TopicService, "_list", counted)
    monkeypatch.setattr(topics_module, "SLICE", 1)
    order: list[str] = []

    async def look(peer: MemoryLink) -> None:
        assert len(names(await done(peer, "list", "w", limit=500))) == 300
        order.append("list")

    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(connect(core, agent("w", "sender", "1")))
        for number in range(300):
            sender.send(message_to(f"ag::w::a::{number}", b"x"))
        await barrier(sender)
        peers = [await stack.enter_async_context(connect(core, orchestrator("o", f"x{n}"))) for n in range(10)]
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(look, peer)
            sender.send(kv_get("r"))
            await sender.next("kv")
            order.append("another client")
    assert most == 1
    assert order.index("another client") <= 1, order
    assert len(order) == 11
