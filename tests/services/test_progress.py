"""Progress reports: who may, where they go, what they carry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    bridge,
    connect,
    errors,
    metrics_bridge,
    orchestrator,
    service,
    switch_to,
    task,
    user,
    workflow_engine,
)

Peers = dict[str, MemoryLink]
LISTENERS = {
    "ag.w.1": agent("w", "a", "1"),
    "ag.w.2": agent("w", "a", "2"),
    "ag.v.1": agent("v", "a", "1"),
    "us.u.1@w": user("u", "1"),
    "us.u.2": user("u", "2"),
    "us.x.1@w": user("x", "1"),
    "tu.w.1": task("w", "t", "1"),
    "sv": service("s", "1"),
}


@pytest.fixture
async def participants(core: Core) -> AsyncIterator[Peers]:
    peers: Peers = {}
    async with AsyncExitStack() as stack:
        for name, hello in LISTENERS.items():
            peer = peers[name] = await stack.enter_async_context(connect(core, hello))
            if "@" in name:
                peer.send(switch_to(name.partition("@")[2]))
        await barrier(*peers.values())
        yield peers


def report(**fields: object) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(progress=pb.ProgressReport(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sender", "recipient", "receivers"),
    [
        ("ag.w.1", "", {"ag.w.2", "us.u.1@w", "us.x.1@w"}),
        ("ag.w.1", "ag::w::a::2", {"ag.w.2"}),
        ("ag.w.1", "ag::v::a::1", set()),
        ("ag.w.1", "us::u", {"us.u.1@w", "us.u.2"}),
        ("ag.w.1", "us::u::2", {"us.u.2"}),
        ("ag.w.1", "us::unknown", set()),
        ("tu.w.1", "", {"ag.w.1", "ag.w.2", "us.u.1@w", "us.x.1@w"}),
        ("sv", "us::u::1", {"us.u.1@w"}),
    ],
)
async def test_whom_a_report_reaches(participants: Peers, sender: str, recipient: str, receivers: set[str]) -> None:
    participants[sender].send(report(summary="half", recipient=recipient))
    await barrier(participants[sender])
    assert errors(participants[sender]) == []
    assert {name for name, peer in participants.items() if peer.waiting("progress_update")} == receivers


async def test_what_an_update_carries(core: Core, participants: Peers) -> None:
    fields: dict[str, Any] = {
        "task_id": "t1",
        "state": "working",
        "completion": 0.5,
        "summary": "half",
        "step": pb.ProgressStep(name="load", sequence=2, total_steps=5),
        "recipient": "ag::w::a::2",
        "request_id": "r1",
        "metadata": {"k": "v"},
        "kind": pb.PROGRESS_KIND_APP,
    }
    participants["ag.w.1"].send(report(**fields))
    update = (await participants["ag.w.2"].next("progress_update")).progress_update
    now_ms = core.clock.now_ms()
    assert update == pb.ProgressUpdate(source="ag::w::a::1", timestamp_ms=now_ms, workspace="w", **fields)


@pytest.mark.parametrize(
    "hello", [user("u", "9"), bridge("b", "1"), orchestrator("k", "1"), workflow_engine(), metrics_bridge()]
)
async def test_others_may_not_report(core: Core, hello: pb.UpstreamMessage) -> None:
    async with connect(core, hello) as peer:
        peer.send(report(summary="half"))
        assert (await peer.next("error")).error.code == Code.INVALID_PRINCIPAL


AGENT, SERVICE = agent("w", "a", "1"), service("s", "1")


@pytest.mark.parametrize(
    ("hello", "message", "code"),
    [
        (AGENT, report(recipient="us::"), Code.INVALID_ARGUMENT),
        (AGENT, report(recipient="unknown"), Code.INVALID_ARGUMENT),
        (AGENT, report(recipient="us::a b"), Code.INVALID_ARGUMENT),
        (AGENT, report(summary="x" * 70_000), Code.PAYLOAD_TOO_LARGE),
        (SERVICE, report(summary="half"), Code.INVALID_ARGUMENT),  # a service needs a recipient
    ],
)
async def test_what_is_refused(core: Core, hello: pb.UpstreamMessage, message: pb.UpstreamMessage, code: Code) -> None:
    async with connect(core, hello) as peer:
        peer.send(message)
        assert (await peer.next("error")).error.code == code


async def test_reports_and_messages_share_a_rate(world: World) -> None:
    limits = {"send_rate_per_s": 10, "send_burst": 10}
    async with world.open(limits=limits) as core, connect(core, agent("w", "a", "1")) as peer:
        send = pb.UpstreamMessage(send=pb.SendMessage(target_topic="event::*", payload=b"x"))
        peer.send(*[report()] * 5, *[send] * 5, report(), send)
        await barrier(peer)
        assert [error.code for error in errors(peer)] == [Code.RATE_LIMITED] * 2


async def test_a_window_that_has_left_a_workspace_gets_no_progress_of_it(core: Core, participants: Peers) -> None:
    participants["us.u.1@w"].send(switch_to("v"))
    await barrier(participants["us.u.1@w"])
    participants["ag.w.1"].send(report(summary="w"))
    participants["ag.v.1"].send(report(summary="v"))
    await barrier(participants["ag.w.1"], participants["ag.v.1"])
    found = [one.progress_update.summary for one in participants["us.u.1@w"].waiting("progress_update")]
    assert found == ["v"]
