"""The handshake: refusals before any message, the first messages, and resumes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.session.identity_locks import LocalIdentityLocks
from aether_trio.session.init_connection import Claim
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    bridge,
    connect,
    deadlock_is_an_error,
    kv_get,
    message_to,
    metrics_bridge,
    orchestrator,
    payloads,
    pump,
    rest_of,
    service,
    task,
    user,
    workflow_engine,
)
from tests.session.peers import ack_of, refusal, visit

ONE = "ag::w::a::1"


def extension(uri: str, *, required: bool = False) -> pb.ExtensionDeclaration:
    return pb.ExtensionDeclaration(uri=uri, version="1", required=required)


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "topic", "configured"),
    [
        (agent("w", "a", "1"), ONE, True),
        (task("w", "t", "1"), "tu::w::t::1", True),
        (service("s", "1"), "sv::s::1", False),
        (bridge("b", "1"), "br::b::1", False),
        (user("u", "1"), "us::u::1", False),
        (workflow_engine(), "event::receiver0", False),
        (metrics_bridge(), "metric::receiver0", False),
    ],
)
async def test_the_ack_is_first_then_the_configuration_then_the_backlog(
    core: Core, hello: pb.UpstreamMessage, topic: str, configured: bool
) -> None:
    async with connect(core, service("sender", "1")) as sender:
        sender.send(*(message_to(topic, b"%d" % number) for number in range(3)))
        await barrier(sender)
        async with connect(core, hello, wait_ack=False) as peer:
            kinds = [(await peer.receive_message()).WhichOneof("payload") for _ in range(4 + configured)]
    assert kinds == ["connection_ack", *(["config"] * configured), "msg", "msg", "msg"]


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_live_message_does_not_overtake_the_backlog_or_the_ack(core: Core, world: World) -> None:
    async with connect(core, service("sender", "1")) as sender:
        sender.send(message_to(ONE, b"old"))
        await barrier(sender)
        world.state.after_read.close()
        async with connect(core, agent("w", "a", "1"), wait_ack=False) as peer:
            await world.state.after_read.arrival()
            sender.send(message_to(ONE, b"while it connects"))
            await core.log.drain()
            await pump()
            world.state.after_read.open()
            sender.send(message_to(ONE, b"new"))
            await barrier(sender, peer)
            kinds = [one.WhichOneof("payload") for one in peer._downstream]
            assert kinds[:2] == ["connection_ack", "config"]
            assert payloads(peer) == [b"old", b"while it connects", b"new"]


async def test_the_configuration_carries_what_is_the_agents_own(core: Core) -> None:
    def put(scope: pb.KVOperation.Scope.ValueType, key: str) -> pb.UpstreamMessage:
        op = pb.KVOperation(op=pb.KVOperation.PUT, scope=scope, key=key, value=key.encode(), request_id=key)
        return pb.UpstreamMessage(kv_op=op)

    async with connect(core, agent("w", "a", "1")) as peer:
        assert not (await peer.next("config")).config.workspace_exclusive_kv
        peer.send(
            put(pb.KVOperation.WORKSPACE_EXCLUSIVE, "here"),
            put(pb.KVOperation.GLOBAL_EXCLUSIVE, "everywhere"),
            put(pb.KVOperation.WORKSPACE, "shared"),
        )
        await barrier(peer)
    async with connect(core, agent("w", "a", "1")) as peer:
        config = (await peer.next("config")).config
        assert dict(config.workspace_exclusive_kv) == {"here": b"here"}
        assert dict(config.global_exclusive_kv) == {"everywhere": b"everywhere"}


async def test_requests_right_behind_init_are_served_in_order(core: Core) -> None:
    link = MemoryLink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.sessions.serve, link)
        link.send(agent("w", "a", "1"), message_to(ONE, b"1"), kv_get("first"), message_to(ONE, b"2"), kv_get("second"))
        link.finish()
        messages = await rest_of(link)
    kinds = [one.WhichOneof("payload") for one in messages]
    assert kinds[:2] == ["connection_ack", "config"]
    assert [one.kv.request_id for one in messages if one.HasField("kv")] == ["first", "second"]
    assert b"1" in [one.msg.payload for one in messages]
    assert core.log.statistics().settled == 2


# -- the ack ---------------------------------------------------------------------------------------


async def test_a_fresh_ack(core: Core) -> None:
    ack = await visit(core, agent("w", "a", "1"))
    assert len(ack.session_id) == 36
    assert (ack.resumed, ack.assigned_id, ack.reconnection_count) == (False, "", 0)
    assert ack.initial_connection_unix_ms == 1_700_000_000_000
    assert ack.server_version
    assert list(ack.negotiated_extensions) == list(ack.server_supported_extensions) == []


async def test_an_orchestrator_without_a_specifier_is_given_one(core: Core) -> None:
    async with (
        connect(core, orchestrator("k8s"), wait_ack=False) as first,
        connect(core, orchestrator("k8s"), wait_ack=False) as second,
        connect(core, orchestrator("k8s", "mine"), wait_ack=False) as third,
    ):
        ids = [(await ack_of(peer)).assigned_id for peer in (first, second, third)]
        assert len(ids[0]) == 8
        assert ids[0] != ids[1]
        assert ids[2] == ""
        assert core.registry.holder(f"orc::k8s::{ids[0]}") is not None


# -- refusals --------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[pb.UpstreamMessage, str]] = {
    "not init": (kv_get("x"), "first message"),
    "an empty message": (pb.UpstreamMessage(), "first message"),
    "no client_type": (pb.UpstreamMessage(init=pb.InitConnection()), "does not say which participant"),
    "an empty part": (agent("w", "", "1"), "implementation is empty"),
    "a separator": (agent("w", "a::b", "1"), "::"),
    "a wildcard": (agent("w", "a", "*"), r"\*"),
    "a long part": (agent("w", "a", "x" * 129), "129 bytes"),
    "a user without a window": (user("u", ""), "window id is empty"),
    "a service without a name": (service("s", ""), "specifier is empty"),
    "a required extension": (
        agent("w", "a", "1", extensions=[extension("urn:x", required=True)]),
        "^ERR_EXTENSION_UNSUPPORTED: .*urn:x",
    ),
    "too many extensions": (
        agent("w", "a", "1", extensions=[extension(f"urn:{number}") for number in range(65)]),
        "65 extensions",
    ),
    "a long extension": (
        agent("w", "a", "1", extensions=[extension("x" * 1025)]),
        r"extensions\[0\].uri has 1025 bytes",
    ),
    "too many credentials": (
        agent("w", "a", "1", credentials={f"{number}": "x" for number in range(17)}),
        "17 credentials",
    ),
    "a long credential": (
        agent("w", "a", "1", credentials={"token": "x" * 20_000}),
        r"credentials\['token'\] has 20000 bytes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_comes_before_any_message(core: Core, case: str) -> None:
    hello, text = REFUSED[case]
    ended = await refusal(core, hello)
    required = case == "a required extension"
    assert ended.status is (Status.FAILED_PRECONDITION if required else Status.INVALID_ARGUMENT)
    assert re.search(text, ended.message)
    assert len(core.registry) == 0
    assert core.registry.statistics().claims == 0


async def test_a_stream_that_ends_or_breaks_before_init_leaves_nothing(core: Core) -> None:
    ended, broken = MemoryLink(), MemoryLink()
    ended.finish()
    broken.cut()
    await core.sessions.serve(ended)
    await core.sessions.serve(broken)
    assert ended.ended is not None
    assert broken.ended is None
    assert len(core.registry) == 0


async def test_credentials_are_asked_for_before_the_identity_is_taken(world: World) -> None:
    auth = {"allow_anonymous": False, "trust_network": False}
    async with deadlock_is_an_error(), world.open(gateway={"dev": False, "ephemeral": True}, auth=auth) as core:
        assert (await refusal(core, agent("w", "a", "1"))).status is Status.UNAUTHENTICATED
        assert core.registry.statistics().claims == 0


async def test_a_workspace_may_be_full(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(limits={"connections_per_workspace": 2}) as core,
        connect(core, agent("w", "a", "1"), wait_ack=False) as first,
        connect(core, task("w", "t")),
        connect(core, agent("v", "a", "1")),
        connect(core, user("u", "1")),
        connect(core, user("u", "2")),
        connect(core, user("u", "3")),
    ):
        ack = await ack_of(first)
        assert (await refusal(core, agent("w", "a", "3"))).status is Status.RESOURCE_EXHAUSTED
        # A takeover is no additional connection, and its end has made room.
        await visit(core, agent("w", "a", "1", resume_session_id=ack.session_id))
        await visit(core, agent("w", "a", "4"))


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_gateway_that_cannot_read_its_log_says_so_and_holds_nothing(core: Core, world: World) -> None:
    world.log.failing = True
    assert (await refusal(core, agent("w", "a", "1"))).status is Status.UNAVAILABLE
    world.log.failing = False
    assert core.registry.holder(ONE) is None
    await visit(core, agent("w", "a", "1"))


async def test_a_second_init_ends_the_stream_after_what_came_before_it(core: Core, peer: MemoryLink) -> None:
    peer.send(kv_get("before"), agent("w", "a", "2"), kv_get("behind"))
    messages = await rest_of(peer)
    assert [one.kv.request_id for one in messages if one.HasField("kv")] == ["before"]
    assert peer.ended is not None
    assert peer.ended.status is Status.INVALID_ARGUMENT
    assert len(core.registry) == 0


# -- duplicates and resumes ------------------------------------------------------------------------


async def test_a_holder_that_is_just_leaving_is_waited_for(core: Core) -> None:
    async with (
        connect(core, agent("w", "a", "1")) as first,
        connect(core, agent("w", "a", "1"), wait_ack=False) as second,
    ):
        await pump()
        first.finish()
        assert not (await ack_of(second)).resumed


@pytest.mark.parametrize("how", ["finish", "cut"])
async def test_a_resume_continues_a_dead_session(core: Core, how: str) -> None:
    session_id, start = "", 0
    for number in range(4):
        async with connect(core, agent("w", "a", "1", resume_session_id=session_id), wait_ack=False) as peer:
            ack = await ack_of(peer)
            assert ack.resumed == bool(number)
            assert ack.reconnection_count == number
            start = start or ack.initial_connection_unix_ms
            assert ack.initial_connection_unix_ms == start
            session_id = ack.session_id
            await trio.sleep(5)
            getattr(peer, how)()


async def test_a_stale_resume_is_a_plain_connect(core: Core) -> None:
    stale = (await visit(core, agent("w", "a", "1"))).session_id
    await trio.sleep(5)
    second = await visit(core, agent("w", "a", "1"))
    assert not second.resumed
    third = await visit(core, agent("w", "a", "1", resume_session_id=stale))
    assert (third.resumed, third.reconnection_count) == (False, 0)
    assert third.initial_connection_unix_ms > second.initial_connection_unix_ms - 5000


async def test_a_resume_continues_across_a_restart_of_the_gateway(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "a", "1"), wait_ack=False) as peer:
            first = await ack_of(peer)
            await trio.sleep(5)
        hello = agent("w", "a", "1", resume_session_id=first.session_id)
        async with world.open() as core:
            second = await visit(core, hello)
        async with world.open() as core:
            third = await visit(core, hello)  # of the life before the last
    assert (second.resumed, second.reconnection_count) == (True, 1)
    assert second.initial_connection_unix_ms == first.initial_connection_unix_ms
    assert not third.resumed


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_resume_whose_ack_was_never_sent_can_be_repeated(core: Core, world: World) -> None:
    """The client knows only its old session id, so that one must go on working."""
    hello = agent("w", "a", "1", resume_session_id=(await visit(core, agent("w", "a", "1"))).session_id)
    world.log.failing = True
    assert (await refusal(core, hello)).status is Status.UNAVAILABLE
    world.log.failing = False
    second = await visit(core, hello)
    assert (second.resumed, second.reconnection_count) == (True, 1)


# -- extensions ------------------------------------------------------------------------------------


async def test_each_declared_extension_is_answered(core: Core) -> None:
    hello = agent("w", "a", "1", extensions=[extension("urn:one")])
    ack = await visit(core, hello, metadata={"aether-extensions": " urn:two ,, urn:one"})
    answers = [(one.uri, one.version, one.supported) for one in ack.negotiated_extensions]
    assert answers == [("urn:one", "1", False), ("urn:two", "", False), ("urn:one", "", False)]
    assert all(one.rejection_reason for one in ack.negotiated_extensions)


async def test_known_extensions_are_supported_and_named(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.session.init_connection.KNOWN_EXTENSIONS", frozenset({"urn:a", "urn:b", "urn:c"}))
    ack = await visit(core, agent("w", "a", "1", extensions=[extension("urn:b", required=True)]))
    [answer] = ack.negotiated_extensions
    assert (answer.uri, answer.supported, answer.rejection_reason) == ("urn:b", True, "")
    assert list(ack.server_supported_extensions) == ["urn:a", "urn:c"]
    # Nothing declared, nothing negotiated.
    assert not (await visit(core, agent("w", "a", "2"))).server_supported_extensions


async def test_a_session_can_still_be_resumed_after_a_client_that_has_gone_while_its_identity_was_claimed(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster a claim may take seconds, and the client tries again."""
    ack = await visit(core, agent("w", "a", "1"))
    hello = agent("w", "a", "1", resume_session_id=ack.session_id)
    impatient = MemoryLink()
    take = LocalIdentityLocks.take

    async def take_slowly(self: LocalIdentityLocks, session: Session, claim: Claim) -> Any:
        impatient.cut()
        return await take(self, session, claim)

    with monkeypatch.context() as patch:
        patch.setattr(LocalIdentityLocks, "take", take_slowly)
        impatient.send(hello)
        await core.sessions.serve(impatient)
    again = await visit(core, hello)
    assert (again.resumed, again.reconnection_count) == (True, 1)
    assert again.initial_connection_unix_ms == ack.initial_connection_unix_ms
