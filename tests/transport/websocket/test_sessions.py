"""Users' windows in front of a real core: resume, takeover, workspaces."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from wsproto.events import Ping

from aether_trio.model.errors import Status
from aether_trio.transport.link import Link, PeerCertificate
from aether_trio.wire.browser import CODECS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, message_to
from tests.transport.pki import Pki
from tests.transport.websocket.harness import TransportServer, hello, open_socket, open_transport, open_window


def checkpoint_load(request_id: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(
        checkpoint_op=pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id=request_id)
    )


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_two_windows_of_a_user_are_two_participants(transport: TransportServer, subprotocol: str) -> None:
    async with (
        open_window(transport, "ada", "w1", subprotocol) as first,
        open_window(transport, "ada", "w2", "aether.v1.proto") as second,
    ):
        await first.send(message_to("us::ada::w2", b"\x00\xffhello", pb.CHAT))
        message = (await second.next("msg")).msg
        assert (message.source_topic, message.payload) == ("us::ada::w1", b"\x00\xffhello")
        assert message.message_type == pb.CHAT
        await second.send(message_to("us::ada::w1", b"\x00\xffback", pb.CHAT))
        assert (await first.next("msg")).msg.payload == b"\x00\xffback"


async def test_the_same_window_twice_is_refused_for_good(transport: TransportServer) -> None:
    async with open_window(transport), open_socket(transport) as second:
        await second.send(hello())
        closed = await second.closed()
        assert closed.code == 4206
        assert "us::ada::w1" in closed.reason


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_a_reload_takes_over_what_the_old_page_had(transport: TransportServer, subprotocol: str) -> None:
    async with open_socket(transport, subprotocol) as old:
        await old.send(hello())
        session_id = (await old.next("connection_ack")).connection_ack.session_id
        async with open_socket(transport, subprotocol) as new:
            await new.send(hello(resume_session_id=session_id))
            ack = (await new.next("connection_ack")).connection_ack
            assert ack.resumed
            assert ack.reconnection_count == 1
            closed = await old.closed()
            assert closed.code == 4201
            assert "has taken over" in closed.reason


async def test_what_came_while_a_window_was_away_is_there_after_its_resume(transport: TransportServer) -> None:
    async with open_window(transport, "bob", "w1") as bob:
        async with open_socket(transport) as ada:
            await ada.send(hello())
            session_id = (await ada.next("connection_ack")).connection_ack.session_id
            await ada.close(1001)
        await bob.send(*(message_to("us::ada::w1", b"%d" % number) for number in range(300)))
        await bob.send(checkpoint_load("settled"))
        await bob.next("checkpoint")
        async with open_window(transport, resume_session_id=session_id) as ada:
            for number in range(300):
                assert (await ada.next("msg")).msg.payload == b"%d" % number


@pytest.mark.parametrize(
    ("first", "auth", "code", "says"),
    [
        (hello("a b"), {}, 4203, "identity"),
        (message_to("us::ada::w1", b""), {}, 4203, ""),
        (agent("prod", "a", "1"), {}, 4207, ""),
        (hello(credentials={"api_key": "made-up"}), {"allow_anonymous": False}, 4216, ""),
    ],
    ids=["bad window id", "no init", "agent", "wrong credentials"],
)
async def test_a_refused_first_message(first: pb.UpstreamMessage, auth: dict[str, Any], code: int, says: str) -> None:
    async with open_transport(auth=auth) as transport, open_socket(transport) as client:
        await client.send(first)
        closed = await client.closed()
        assert closed.code == code
        assert says in closed.reason
        assert len(transport.core.registry) == 0  # type: ignore[union-attr]


async def test_agents_may_come_this_way_where_they_are_let() -> None:
    async with open_transport(principals=("*",)) as transport, open_socket(transport) as client:
        await client.send(agent("prod", "a", "1"))
        await client.next("connection_ack")


async def test_a_slow_window_costs_bounded_memory_and_loses_nothing(transport: TransportServer) -> None:
    async with open_window(transport, "slow", "w1") as slow:
        core = transport.core
        assert core is not None
        async with connect(core, agent("prod", "a", "1")) as sender:
            count, size = 400, 50_000
            for number in range(count):
                sender.send(message_to("us::slow::w1", number.to_bytes(4) + b"x" * size))
                if number % 20 == 19:
                    sender.send(checkpoint_load(str(number)))
                    with trio.fail_after(300):
                        await sender.next("checkpoint")
            (session,) = [session for session in core.registry if session.identity.text == "us::slow::w1"]
            assert session.link.stalled_since is not None
            assert session.outbox.delivery_bytes <= session.outbox.limits.delivery_bytes + size + 100
            for number in range(count):
                assert (await slow.next("msg")).msg.payload[:4] == number.to_bytes(4)


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_windows_over_tls(pki: Pki, subprotocol: str) -> None:
    async with (
        open_transport(tls=pki.files()) as transport,
        open_window(transport, "ada", "w1", subprotocol, tls=pki.context("http/1.1")) as ada,
        open_window(transport, "bob", "w1", tls=pki.context("http/1.1")) as bob,
    ):
        await bob.send(message_to("us::ada::w1", b"x" * 200_000))
        assert (await ada.next("msg")).msg.payload == b"x" * 200_000
        await ada.send(*(message_to("us::bob::w1", b"%d" % number) for number in range(500)))
        for number in range(500):
            assert (await bob.next("msg")).msg.payload == b"%d" % number
        assert (await ada.close()).code == 1000


async def test_a_client_certificate_is_the_peers(pki: Pki) -> None:
    peers: list[PeerCertificate | None] = []

    async def serve(link: Link) -> None:
        peers.append(link.peer.certificate)
        await link.close(Status.UNAVAILABLE, "seen")

    async with open_transport(serve, tls=pki.files()) as transport:
        for context in (pki.context("http/1.1"), pki.context(certificate=True)):
            async with open_socket(transport, tls=context) as client:
                assert (await client.closed()).code == 4114
    assert peers[0] is None
    assert peers[1] is not None
    assert peers[1].common_name == "agent-7"


async def test_a_quiet_connection_is_pinged_for_the_proxies_on_its_way() -> None:
    async with (
        open_transport(ping_interval_s=0.05) as transport,
        open_window(transport) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(transport.server.keep_alive)
        while not isinstance(await client.next_event(), Ping):
            pass
        nursery.cancel_scope.cancel()


async def test_no_pings_when_they_are_switched_off() -> None:
    async with open_transport(ping_interval_s=0) as transport:
        await transport.server.keep_alive()  # ends at once
