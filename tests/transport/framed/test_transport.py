"""What the transport does for a client that keeps the rules."""

from __future__ import annotations

import pytest

from aether_trio.model.errors import Status
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire import framing
from aether_trio.wire.framing.constants import FrameType
from aether_trio.wire.framing.encode import encode_delivered
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import hang_kv, kv_get, switch_to, task, user
from tests.transport.framed.adversary import frame
from tests.transport.framed.harness import FramedPeer, TransportServer, agent

A = "ag::w::a::1"
B = "ag::w::b::1"


async def test_an_ack_means_committed_and_covers_all_before_it(transport: TransportServer, a: FramedPeer) -> None:
    await a.send(*(framing.Send(seq, B, b"x") for seq in range(1, 101)))
    await a.acked(100)
    assert transport.core.log.topics.ensure(B).tail == 100


async def test_only_refusals_are_acknowledged_too(a: FramedPeer) -> None:
    await a.send(framing.Send(7, "nonsense", b""))
    assert (await a.next(framing.Nack)).seq == 7
    assert (await a.next(framing.Ack)).seq == 7


async def test_the_extra_part_is_judged_as_on_every_transport(a: FramedPeer, b: FramedPeer) -> None:
    extra = pb.SendMessage(app_workspace="elsewhere").SerializeToString()
    await a.send(framing.Send(1, B, b"", extra=extra), framing.Send(2, B, b"", extra=b"\xff"))
    assert (await a.next(framing.Nack)).seq == 2
    _, message = await b.delivery()
    assert message.workspace == "elsewhere"


async def test_an_answer_is_a_barrier_with_its_ack_in_front(a: FramedPeer) -> None:
    for round_ in range(1, 20):
        await a.send(framing.Send(round_, B, b"x"), framing.Envelope(kv_get("nothing").SerializeToString()))
        answered = acked = False
        while not answered:
            event = await a.next(framing.Event)
            acked |= event == framing.Ack(round_)
            if isinstance(event, framing.Envelope):
                answered = pb.DownstreamMessage.FromString(event.message).HasField("kv")
        assert acked


async def test_deliveries_move_the_position_when_they_are_acknowledged(
    transport: TransportServer, a: FramedPeer, b: FramedPeer
) -> None:
    await a.send(*(framing.Send(seq, B, bytes((seq,))) for seq in (1, 2, 3)))
    events = [(await b.delivery())[0] for _ in range(3)]
    await b.send(framing.Delivered(events[1].channel, events[1].offset))
    await b.finish()
    b = await transport.connect(agent("b"))
    event, message = await b.delivery()
    assert (message.payload, event.offset) == (b"\x03", 3)
    assert b.channels[event.channel].position == 2


async def test_without_delivery_acks_the_position_moves_when_the_kernel_has_the_bytes(
    transport: TransportServer, a: FramedPeer
) -> None:
    b = await transport.connect(agent("b"), delivery_acks=False)
    await a.send(framing.Send(1, B, b"one"))
    await b.delivery()
    await b.finish()
    await a.send(framing.Send(2, B, b"two"))
    b = await transport.connect(agent("b"))
    assert await b.payload() == b"two"


async def test_unacknowledged_messages_come_again(transport: TransportServer, a: FramedPeer, b: FramedPeer) -> None:
    await a.send(framing.Send(1, B, b"one"))
    await b.delivery()
    b.cut()
    b = await transport.connect(agent("b"))
    assert await b.payload() == b"one"


async def test_a_work_queue_takes_back_unacknowledged_messages(transport: TransportServer, a: FramedPeer) -> None:
    first = await transport.connect(task("w", "job"))
    topic = "tb::w::job"
    await a.send(*(framing.Send(seq, topic, bytes((seq,))) for seq in (1, 2, 3)))
    events = [(await first.delivery())[0] for _ in range(3)]
    assert first.channels[events[0].channel].shared
    await first.send(framing.Delivered(events[1].channel, events[1].offset))
    await first.finish()
    second = await transport.connect(task("w", "job"))
    rest = [await second.payload() for _ in range(2)]
    assert rest == [b"\x01", b"\x03"]


async def test_credit_bounds_what_is_sent(transport: TransportServer, a: FramedPeer) -> None:
    b = await transport.connect(agent("b"), credit_messages=2)
    await a.send(*(framing.Send(seq, B, bytes((seq,))) for seq in range(1, 6)))
    await a.acked(5)
    assert [(await b.delivery())[1].payload[0] for _ in range(2)] == [1, 2]
    await b.request(kv_get("barrier"))
    await b.answer("kv")
    assert not [event for event in b._events if isinstance(event, framing.Deliver)]
    await b.send(framing.GrantCredit(2, 0))
    assert [(await b.delivery())[1].payload[0] for _ in range(2)] == [3, 4]


async def test_credit_in_bytes_may_be_exceeded_by_one_message(transport: TransportServer, a: FramedPeer) -> None:
    b = await transport.connect(agent("b"), credit_bytes=1)
    await a.send(framing.Send(1, B, bytes(1000)), framing.Send(2, B, b"two"))
    event, _ = await b.delivery()
    await b.send(framing.GrantCredit(0, len(event.message)))
    assert await b.payload() == b"two"


async def test_a_repeated_number_is_one_message(transport: TransportServer) -> None:
    a = await transport.connect(agent("a"), publisher=b"p" * 16)
    await a.send(framing.Send(1, B, b"one"), framing.Send(2, "nonsense", b""), framing.Send(3, B, b"three"))
    await a.acked(3)
    a.cut()
    a = await transport.connect(agent("a"), publisher=b"p" * 16)
    await a.send(*(framing.Send(seq, B, text) for seq, text in enumerate((b"one", b"two", b"three", b"four"), 1)))
    await a.acked(4)
    b = await transport.connect(agent("b"))
    assert [await b.payload() for _ in range(4)] == [b"one", b"three", b"two", b"four"]


async def test_another_publisher_counts_anew(transport: TransportServer) -> None:
    for token in (b"p" * 16, b"q" * 16):
        a = await transport.connect(agent("a"), publisher=token)
        await a.send(framing.Send(1, B, token))
        await a.next(framing.Ack)
        await a.finish()
    assert transport.core.log.topics.ensure(B).tail == 2


async def test_a_number_beyond_the_window_is_forgotten(transport: TransportServer) -> None:
    a = await transport.connect(agent("a"), publisher=b"p" * 16)
    await a.send(framing.Send(1, B, b""))
    await a.next(framing.Ack)
    await a.send(framing.Send(4097, B, b""))
    await a.next(framing.Ack)
    await a.finish()
    a = await transport.connect(agent("a"), publisher=b"p" * 16)
    await a.send(framing.Send(1, B, b""))
    nack = await a.next(framing.Nack)
    assert (nack.code, nack.retryable) == ("ERR_SEQUENCE_FORGOTTEN", False)


async def test_a_client_that_ends_at_once_still_gets_its_acks(a: FramedPeer) -> None:
    await a.send(*(framing.Send(seq, B, b"x") for seq in range(1, 51)), framing.Send(51, "nonsense", b""))
    await a.stream.send_eof()
    assert (await a.next(framing.Nack)).seq == 51
    await a.acked(51)
    assert await a.until_end() is None


@pytest.mark.parametrize("token", [None, b"p" * 16])
async def test_every_message_that_is_not_stored_is_refused_numbered_or_not(
    transport: TransportServer, token: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await transport.connect(agent("a"), publisher=token)

    async def fail(*_: object) -> None:
        raise StorageUnavailable("no room on this disk")

    monkeypatch.setattr(transport.core.log._writer, "append", fail)
    plain = framing.Envelope(pb.UpstreamMessage(send=pb.SendMessage(target_topic=B, payload=b"x")).SerializeToString())
    await a.send(plain, framing.Send(1, B, b"x"), plain, framing.Send(2, B, b"x"), plain)
    for seq in (1, 2):
        nack = await a.next(framing.Nack)
        assert (nack.seq, nack.code, nack.retryable) == (seq, "ERR_PUBLISH_FAILED", True)
    await a.acked(2)
    for _ in range(3):
        error = (await a.answer("error")).error
        assert (error.code, error.retryable) == ("ERR_PUBLISH_FAILED", True)


async def test_pings_are_answered_by_the_last(a: FramedPeer) -> None:
    await a.send(framing.Ping(1), framing.Ping(2))
    assert (await a.next(framing.Pong)).number == 2


@pytest.mark.parametrize("behind", [frame(FrameType.PONG, bytes(8)), frame(0x80), frame(0xFF, b"new", flags=1)])
async def test_a_hello_is_answered_whatever_is_behind_it(transport: TransportServer, behind: bytes) -> None:
    """A client may wait for the answer before it says who it is."""
    peer = await transport.dial()
    await peer.send_raw(peer.codec.send(framing.ClientHello()) + behind)
    await peer.next(framing.ServerHello)
    await peer.request(agent("a"))
    await peer.answer("connection_ack")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_that_has_not_said_who_it_is_may_ping(transport: TransportServer, at_once: bool) -> None:
    peer = await transport.dial()
    hello = peer.codec.send(framing.ClientHello())
    if at_once:
        await peer.send_raw(hello + peer.codec.send(framing.Ping(7)))
    else:
        await peer.send_raw(hello)
        await peer.next(framing.ServerHello)
        await peer.send(framing.Ping(7))
    assert (await peer.next(framing.Pong)).number == 7
    await peer.request(agent("a"))
    await peer.answer("connection_ack")


async def test_too_many_pings_are_told_calm(transport: TransportServer, a: FramedPeer) -> None:
    await a.send(*(framing.Ping(number) for number in range(3000)))
    error = await a.until_end()
    assert error is not None
    assert (error.code, error.retryable) == (framing.ErrorCode.CALM, True)
    assert transport.server.statistics().rejects == {"calm": 1}


async def test_a_resume_takes_over(transport: TransportServer) -> None:
    old = await transport.dial()
    ack = await old.open(agent("a"))
    new = await transport.dial()
    again = await new.open(agent("a", resume_session_id=ack.session_id))
    assert again.resumed
    error = await old.until_end()
    assert error is not None
    assert error.code == Status.CANCELLED


@pytest.mark.parametrize("how", ["cut", "end"])
async def test_an_identity_of_a_hanging_session_is_free(transport: TransportServer, a: FramedPeer, how: str) -> None:
    hanging = hang_kv(transport.core)
    await a.request(kv_get("x"))
    await a.send(framing.Send(1, B, b"unread"))
    await hanging.wait()
    if how == "cut":
        a.cut()
    else:
        await a.stream.send_eof()
    b = await transport.connect(agent("a"))
    await b.send(framing.Send(1, B, b"x"))
    assert (await b.next(framing.Ack)).seq == 1


async def test_many_workspaces_give_their_channels_back(transport: TransportServer, a: FramedPeer) -> None:
    window = await transport.connect(user("u", "1"))
    for number in range(40):
        await enter(window, f"w{number}")
        await a.send(framing.Send(number + 1, f"uw::u::w{number}", b"x"))
        event, _ = await window.delivery()
        await window.send(framing.Delivered(event.channel, event.offset))
    assert len(window.codec.channels) < 20


async def test_a_number_is_never_that_of_a_second_topic(transport: TransportServer, a: FramedPeer) -> None:
    """A late DELIVERED for a topic that was left acknowledges nothing that is unseen."""
    window = await transport.connect(user("u", "1"))
    topics: dict[int, str] = {}
    first: framing.Deliver | None = None
    for number in range(40):
        await enter(window, f"w{number}")
        await a.send(framing.Send(number + 1, f"uw::u::w{number}", b"x"))
        event, _ = await window.delivery()
        topic = window.channels[event.channel].topic
        assert topics.setdefault(event.channel, topic) == topic == f"uw::u::w{number}"
        first = first or event
    assert first is not None
    await window.send_raw(encode_delivered(first.channel, first.offset))  # of w0, long after
    await window.finish()
    window = await transport.connect(user("u", "1"))
    for number in (0, 39, 16):
        await enter(window, f"w{number}")
        assert await window.payload() == b"x"  # nothing of it was acknowledged


async def test_a_topic_that_is_left_counts_late_acknowledgements_and_has_one_number_at_a_time(
    transport: TransportServer, a: FramedPeer
) -> None:
    window = await transport.connect(user("u", "1"))
    await enter(window, "w1")
    await a.send(framing.Send(1, "uw::u::w1", b"one"), framing.Send(2, "uw::u::w1", b"two"))
    old, _ = await window.delivery()
    await window.delivery()
    await enter(window, "w2")
    await window.send(framing.Delivered(old.channel, old.offset))
    await enter(window, "w1")
    again, message = await window.delivery()
    assert message.payload == b"two"  # the first one was acknowledged after its topic was left
    assert again.channel != old.channel
    assert (await window.next(framing.ChannelClosed)).channel == old.channel
    await window.send_raw(encode_delivered(old.channel, again.offset))
    await window.send(framing.Delivered(again.channel, again.offset))
    await enter(window, "w2")
    await enter(window, "w1")
    await a.send(framing.Send(3, "uw::u::w1", b"three"))
    assert await window.payload() == b"three"


async def enter(window: FramedPeer, workspace: str) -> None:
    await window.request(switch_to(workspace))
    await window.request(pb.UpstreamMessage(connection_status_request=pb.ConnectionStatusRequest()))
    await window.answer("connection_status_response")
