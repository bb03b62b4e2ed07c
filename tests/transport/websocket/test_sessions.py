"""Users' windows in front of a real core: resume, takeover, workspaces."""

from __future__ import annotations

import pytest
import trio
from wsproto.events import Ping

from aether_trio.model import topics
from aether_trio.model.errors import Status
from aether_trio.transport.link import Link, PeerCertificate
from aether_trio.wire.browser import CODECS, JSON
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, message_to, switch_to
from tests.transport.pki import Pki
from tests.transport.websocket.harness import Client, hello, open_socket, open_transport, open_window


def checkpoint_load(request_id: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(
        checkpoint_op=pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id=request_id)
    )


async def settled(*clients: Client) -> None:
    """Until everything that these have sent is committed: a response is a barrier."""
    for client in clients:
        await client.send(checkpoint_load("settled"))
        await client.next("checkpoint")


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_two_windows_of_a_user_are_two_participants(subprotocol: str) -> None:
    async with (
        open_transport() as transport,
        open_window(transport, "ada", "w1", subprotocol) as first,
        open_window(transport, "ada", "w2", "aether.v1.proto") as second,
    ):
        await first.send(message_to("us::ada::w2", b"\x00\xffhello", pb.CHAT))
        message = (await second.next("msg")).msg
        assert (message.source_topic, message.payload) == ("us::ada::w1", b"\x00\xffhello")
        assert message.message_type == pb.CHAT
        await second.send(message_to("us::ada::w1", b"\x00\xffback", pb.CHAT))
        assert (await first.next("msg")).msg.payload == b"\x00\xffback"


async def test_the_same_window_twice_is_refused_for_good() -> None:
    async with open_transport() as transport, open_window(transport), open_socket(transport) as second:
        await second.send(hello())
        closed = await second.closed()
        assert closed.code == 4206
        assert "us::ada::w1" in closed.reason


@pytest.mark.parametrize("subprotocol", CODECS)
async def test_a_reload_takes_over_what_the_old_page_had(subprotocol: str) -> None:
    async with open_transport() as transport, open_socket(transport, subprotocol) as old:
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


async def test_what_came_while_a_window_was_away_is_there_after_its_resume() -> None:
    async with open_transport() as transport, open_window(transport, "bob", "w1") as bob:
        async with open_socket(transport) as ada:
            await ada.send(hello())
            session_id = (await ada.next("connection_ack")).connection_ack.session_id
            await ada.close(1001)
        await bob.send(*(message_to("us::ada::w1", b"%d" % number) for number in range(300)))
        await settled(bob)
        async with open_window(transport, resume_session_id=session_id) as ada:
            for number in range(300):
                assert (await ada.next("msg")).msg.payload == b"%d" % number


async def test_a_window_switches_workspaces() -> None:
    async with open_transport() as transport:
        assert transport.core is not None
        async with (
            connect(transport.core, agent("prod", "a", "1")) as in_prod,
            connect(transport.core, agent("lab", "a", "1")) as in_lab,
            open_window(transport, codec=JSON) as window,
        ):
            await window.send(switch_to("prod"))
            await settled(window)
            in_prod.send(message_to(topics.users_of("prod"), b"in prod"))
            assert (await window.next("msg")).msg.payload == b"in prod"
            await window.send(switch_to("lab"))
            await settled(window)
            in_prod.send(message_to(topics.users_of("prod"), b"too late"))
            in_lab.send(message_to(topics.users_of("lab"), b"in lab"))
            assert (await window.next("msg")).msg.payload == b"in lab"


async def test_a_bad_window_id_is_refused_with_words() -> None:
    async with open_transport() as transport, open_socket(transport) as client:
        await client.send(hello("a b"))
        closed = await client.closed()
        assert closed.code == 4203
        assert "identity" in closed.reason


async def test_something_else_first_is_refused() -> None:
    async with open_transport() as transport, open_socket(transport) as client:
        await client.send(message_to("us::ada::w1", b""))
        assert (await client.closed()).code == 4203


async def test_agents_may_not_come_this_way_unless_they_are_let() -> None:
    async with open_transport() as transport, open_socket(transport) as client:
        await client.send(agent("prod", "a", "1"))
        assert (await client.closed()).code == 4207
        assert len(transport.core.registry) == 0  # type: ignore[union-attr]
    async with open_transport(principals=("*",)) as transport, open_socket(transport) as client:
        await client.send(agent("prod", "a", "1"))
        await client.next("connection_ack")


async def test_without_credentials_where_they_are_asked_for() -> None:
    async with open_transport(auth={"allow_anonymous": False}) as transport, open_socket(transport) as client:
        await client.send(hello(credentials={"api_key": "made-up"}))
        assert (await client.closed()).code == 4216


async def test_a_drain_tells_windows_to_come_again() -> None:
    async with open_transport() as transport, open_window(transport, codec=JSON) as window:
        core = transport.core
        assert core is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.server.drain, 20)
            await core.let_sessions_go("the gateway is shutting down; connect again")
            closed = await window.closed()
        assert (closed.code, closed.reason) == (4114, "the gateway is shutting down; connect again")
        assert transport.server.statistics().websockets == 0


async def test_a_slow_window_costs_bounded_memory_and_loses_nothing() -> None:
    async with open_transport() as transport, open_window(transport, "slow", "w1") as slow:
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


async def test_a_frame_that_breaks_the_protocol_over_tls(pki: Pki) -> None:
    async with (
        open_transport(tls=pki.files()) as transport,
        open_socket(transport, JSON, tls=pki.context("http/1.1")) as client,
    ):
        await client.send_bytes(b"\x82\x00")
        assert (await client.closed()).code == 1002


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
