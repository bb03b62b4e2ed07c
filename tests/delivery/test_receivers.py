"""The receivers of a message: a table of topics, with all kinds connected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    agent,
    barrier,
    bridge,
    connect,
    errors,
    message_to,
    metrics_bridge,
    orchestrator,
    payloads,
    pump,
    service,
    switch_to,
    task,
    user,
    workflow_engine,
)

HELLOS = {
    "ag.w.a.1": agent("w", "a", "1"),
    "ag.w.a.2": agent("w", "a", "2"),
    "ag.v.a.1": agent("v", "a", "1"),
    "tu.w.t.1": task("w", "t", "1"),
    "ta.w.t": task("w", "t"),
    "us.u.1@w": user("u", "1"),
    "us.u.2@v": user("u", "2"),
    "us.u.3": user("u", "3"),
    "us.x.1@w": user("x", "1"),
    "br.b.1": bridge("b", "1"),
    "sv.s.1": service("s", "1"),
    "sv.o.1": service("o", "1"),
    "orc": orchestrator("k8s", "1"),
    "wfe": workflow_engine(),
    "metrics": metrics_bridge(),
}

TABLE = [
    ("ag::w::a::1", {"ag.w.a.1"}),
    ("ag::v::a::1", {"ag.v.a.1"}),
    ("tu::w::t::1", {"tu.w.t.1"}),
    ("ta::w::t::{assigned}", {"ta.w.t"}),
    ("tb::w::t", {"ta.w.t"}),
    ("ta::w::t::", {"ta.w.t"}),
    ("ga::w", {"ag.w.a.1", "ag.w.a.2"}),
    ("ga::v", {"ag.v.a.1"}),
    ("gu::w", {"us.u.1@w", "us.x.1@w"}),
    ("gu::v", {"us.u.2@v"}),
    ("us::u::1", {"us.u.1@w"}),
    ("us::u::3", {"us.u.3"}),
    ("uw::u::w", {"us.u.1@w"}),
    ("uw::u::v", {"us.u.2@v"}),
    ("uu::u", {"us.u.1@w", "us.u.2@v", "us.u.3"}),
    ("event::receiver0", {"wfe"}),
    ("event::*", {"wfe"}),
    ("event::", {"wfe"}),
    ("event::other", {"wfe"}),
    ("metric::receiver0", {"metrics"}),
    ("metric::*", {"metrics"}),
    ("metric::other", {"metrics"}),
    ("br::b::1", {"br.b.1"}),
    ("sv::s::1", {"sv.s.1"}),
    ("sv::s", {"sv.s.1"}),
    ("tk::w::task1::msg", set()),
    ("ag::w::absent::1", set()),
]


class Participants(dict[str, MemoryLink]):
    """All participants by name; `assigned` is the id of the non-unique task."""

    assigned = ""


@pytest.fixture
async def participants(core: Core) -> AsyncIterator[Participants]:
    peers = Participants()
    async with AsyncExitStack() as stack:
        for name, hello in HELLOS.items():
            peer = peers[name] = await stack.enter_async_context(connect(core, hello, wait_ack=False))
            ack = (await peer.next("connection_ack")).connection_ack
            if name == "ta.w.t":
                peers.assigned = ack.assigned_id
            _, _, workspace = name.partition("@")
            if workspace:
                peer.send(switch_to(workspace))
        await barrier(*peers.values())
        yield peers


@pytest.mark.parametrize(("topic", "receivers"), TABLE)
async def test_a_topic_reaches_its_receivers(participants: Participants, topic: str, receivers: set[str]) -> None:
    sender = participants["sv.o.1"]  # a service may send to every topic
    sender.send(message_to(topic.format(assigned=participants.assigned), b"hello"))
    await barrier(sender)
    assert errors(sender) == []
    assert {name for name, peer in participants.items() if payloads(peer)} == receivers
    assert all(len(payloads(peer)) <= 1 for peer in participants.values())


async def test_what_a_message_looks_like(participants: Participants) -> None:
    sender, receiver = participants["ag.w.a.1"], participants["ag.w.a.2"]
    sender.send(message_to("ag::w::a::2", b"\0\xff", pb.TOOL_CALL))
    await barrier(sender)
    [message] = [one.msg for one in receiver.waiting("msg")]
    assert (message.source_topic, message.payload, message.message_type) == ("ag::w::a::1", b"\0\xff", pb.TOOL_CALL)
    assert message.workspace == "w"
    assert not message.HasField("on_behalf_subject")


@pytest.mark.parametrize(
    ("sender", "topic", "app_workspace", "workspace"),
    [
        ("ag.w.a.1", "ag::w::a::2", "", "w"),
        ("ag.w.a.1", "ag::w::a::2", "app", "app"),
        ("ag.w.a.1", "event::v", "", "v"),
        ("ag.w.a.1", "event::v", "app", "app"),
        ("ag.w.a.1", "event::*", "", "w"),
        ("sv.o.1", "ag::w::a::2", "", ""),
        ("sv.o.1", "metric::v", "", "v"),
        ("us.u.1@w", "ag::w::a::2", "", "w"),
        ("us.u.3", "ag::w::a::2", "", ""),
    ],
)
async def test_the_workspace_that_a_message_names(
    participants: Participants, sender: str, topic: str, app_workspace: str, workspace: str
) -> None:
    peer = participants[sender]
    peer.send(
        pb.UpstreamMessage(send=pb.SendMessage(target_topic=topic, payload=b"hello", app_workspace=app_workspace))
    )
    await barrier(peer)
    found = [one.msg.workspace for other in participants.values() for one in other.waiting("msg")]
    assert found == [workspace]


async def test_senders_of_a_topic_are_served_in_their_order(participants: Participants) -> None:
    first, second = participants["ag.w.a.1"], participants["ag.w.a.2"]
    first.send(*(message_to("ag::v::a::1", b"1-%d" % number) for number in range(50)))
    second.send(*(message_to("ag::v::a::1", b"2-%d" % number) for number in range(50)))
    await barrier(first, second)
    got = payloads(participants["ag.v.a.1"])
    for prefix in (b"1-", b"2-"):
        assert [one for one in got if one.startswith(prefix)] == [prefix + b"%d" % number for number in range(50)]


@pytest.mark.parametrize(("count", "senders", "each"), [(4, 1, 100), (2, 20, 1)], ids=["one sender", "many senders"])
async def test_the_instances_of_a_service_are_chosen_evenly(core: Core, count: int, senders: int, each: int) -> None:
    async with AsyncExitStack() as stack:
        instances = [await stack.enter_async_context(connect(core, service("s", f"{n}"))) for n in range(count)]
        for number in range(senders):
            sender = await stack.enter_async_context(connect(core, agent("w", "a", f"{number}")))
            sender.send(*[message_to("sv::s", b"hello")] * each)
            await barrier(sender)
        assert [len(payloads(one)) for one in instances] == [senders * each // count] * count


async def test_the_choice_of_a_service_follows_who_is_there(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as sender:
        sender.send(message_to("sv::s", b"no instance"))
        error = (await sender.next("error")).error
        assert (error.code, error.retryable) == (Code.SV_UNAVAILABLE, True)
        assert error.retry_after_ms > 0
        async with connect(core, service("s", "1")) as first:
            sender.send(message_to("sv::s", b"first"))
            await barrier(sender)
            assert payloads(first) == [b"first"]
        async with connect(core, service("s", "2")) as second:
            sender.send(message_to("sv::s", b"second"))
            await barrier(sender)
            assert payloads(second) == [b"second"]
        sender.send(message_to("sv::s", b"no instance"))
        assert (await sender.next("error")).error.code == Code.SV_UNAVAILABLE


# -- switching -------------------------------------------------------------------------------------


async def test_after_a_switch_the_old_workspace_is_silent_and_the_new_one_heard(participants: Participants) -> None:
    sender, window = participants["sv.o.1"], participants["us.u.1@w"]
    window.send(switch_to("v"))
    await barrier(window)
    for topic in ("gu::w", "uw::u::w", "gu::v", "uw::u::v", "us::u::1", "uu::u"):
        sender.send(message_to(topic, topic.encode()))
    await barrier(sender)
    assert payloads(window) == [b"gu::v", b"uw::u::v", b"us::u::1", b"uu::u"]


async def test_a_switch_takes_back_what_it_had_queued_and_repeats_nothing(participants: Participants) -> None:
    sender, window = participants["sv.o.1"], participants["us.u.1@w"]
    window.pause()
    sender.send(*(message_to("uw::u::w", b"%d" % number) for number in range(5)), message_to("gu::w", b"old news"))
    await barrier(sender)
    window.send(switch_to("v"), switch_to("w"), switch_to("v"))
    await pump(200)
    sender.send(message_to("gu::v", b"new"), message_to("uw::u::w", b"5"), message_to("gu::w", b"missed"))
    await barrier(sender)
    window.resume()
    await barrier(window)
    assert payloads(window) == [b"new"]
    window.send(switch_to("w"))
    await barrier(window)
    assert payloads(window) == [b"new", *(b"%d" % number for number in range(6))], "also what was sent meanwhile"


async def test_messages_behind_a_switch_are_sent_from_the_new_workspace(participants: Participants) -> None:
    window = participants["us.u.1@w"]
    window.send(message_to("ag::w::a::1", b"1"), switch_to("v"), message_to("ag::w::a::1", b"2"))
    await barrier(window)
    assert [one.msg.workspace for one in participants["ag.w.a.1"].waiting("msg")] == ["w", "v"]
