"""Test what becomes of messages that a client sends, against a scripted gateway."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.client import AgentClient, ConnectionLost, PayloadTooLarge, RateLimited, Retry, Unavailable
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import BACKENDS, agent, run_on
from tests.client.peer import Peer, open_peer, scripted

B = "ag::w::i::b"


async def test_the_first_words() -> None:
    async def body(a: AgentClient) -> None:
        assert (a.session_id, a.resumed) == ("s1", False)

    options = {"api_key": "k", "token": "t", "extensions": ["urn:x"], "resume_session_id": "old", "program": "p/1"}
    async with scripted(body, **options) as (_, line):
        assert line.hello is not None
        assert line.init is not None
        assert line.hello.publisher is not None
        assert (line.hello.agent, line.hello.delivery_acks) == ("p/1", True)
        assert (line.hello.credit_messages, line.hello.credit_bytes) == (1024, 8 * 1024 * 1024)
        assert dict(line.init.credentials) == {"api_key": "k", "token": "t"}
        assert (line.init.agent.workspace, line.init.resume_session_id) == ("w", "old")
        assert (line.init.client_sdk, line.init.extensions[0].uri) == ("aether-trio", "urn:x")
        assert [type(event) for event in await line.end()] == [framing.GoAway]


async def test_send_returns_when_it_is_acknowledged() -> None:
    sent = trio.Event()

    async def body(a: AgentClient) -> None:
        await a.send(B, b"x", details=pb.SendMessage(app_workspace="other", target_topic="ignored"))
        sent.set()

    async with scripted(body) as (_, line):
        send = await line.next(framing.Send)
        assert (send.topic, send.payload, send.message_type) == (B, b"x", 6)
        assert pb.SendMessage.FromString(send.extra) == pb.SendMessage(app_workspace="other")
        assert not sent.is_set()
        await line.say(framing.Ack(send.seq))
        await sent.wait()


async def test_a_nack_is_a_typed_error_of_that_send_alone() -> None:
    async def second(a: AgentClient) -> None:
        with pytest.raises(RateLimited) as caught:
            await a.send(B, b"second")
        error = caught.value
        assert (error.code, error.retryable, error.retry_after_s) == ("ERR_RATE_LIMITED", True, 1.5)

    async def body(a: AgentClient) -> None:
        async with trio.open_nursery() as sends:
            sends.start_soon(a.send, B, b"first")
            await trio.testing.wait_all_tasks_blocked()
            sends.start_soon(second, a)

    async with scripted(body) as (_, line):
        sent = [await line.next(framing.Send) for _ in range(2)]
        nack = framing.Nack(sent[1].seq, "ERR_RATE_LIMITED", "slow", retryable=True, retry_after_ms=1500)
        await line.say(nack, framing.Ack(sent[0].seq), framing.Ack(sent[1].seq))


async def test_the_window_holds_back_what_it_has_no_room_for() -> None:
    async def body(a: AgentClient) -> None:
        for number in range(5):
            await a.publish(B, str(number))
        # A request behind them is a barrier, so it waits with them.
        await a.request(pb.UpstreamMessage(kv_op=pb.KVOperation(key="k")))

    async with scripted(body, hello=framing.ServerHello(publish_window=2)) as (_, line):
        for number in range(0, 4, 2):
            sends = [await line.next(framing.Send), await line.next(framing.Send)]
            assert [send.payload for send in sends] == [b"%d" % number, b"%d" % (number + 1)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not line.seen
            await line.say(framing.Ack(sends[-1].seq))
        last = await line.next(framing.Send)
        asked = await line.asked()
        await line.say(framing.Ack(last.seq))
        await line.tell(kv=pb.KVResponse(success=True, request_id=asked.kv_op.request_id))


async def test_publish_waits_for_room_on_its_way() -> None:
    published: list[int] = []

    async def body(a: AgentClient) -> None:
        for number in range(5):
            await a.publish(B, b"x")
            published.append(number)

    async with scripted(body, max_unsettled=3) as (_, line):
        for _ in range(3):
            send = await line.next(framing.Send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert published == [0, 1, 2]
        await line.say(framing.Ack(send.seq))
        await line.next(framing.Send)
        last = await line.next(framing.Send)
        await line.say(framing.Ack(last.seq))
    assert published == [0, 1, 2, 3, 4]


async def cut_after_three(peer: Peer, hello: framing.ServerHello) -> list[framing.Send]:
    """Settle the first of four messages, refuse the second, and cut the connection."""
    line = peer.line
    sends = [await line.next(framing.Send) for _ in range(4)]
    await line.say(framing.Ack(sends[0].seq), framing.Nack(sends[1].seq, "ERR_INVALID_TOPIC"))
    await line.tell(config=pb.ConfigSnapshot())
    await peer.cut(hello)
    return sends


@pytest.mark.parametrize(("dedup_s", "repeat"), [(60, False), (0, True)])
async def test_after_a_cut_what_was_not_settled_is_sent_again_with_its_old_number(dedup_s: int, repeat: bool) -> None:
    async def body(a: AgentClient) -> None:
        publications = [await a.publish(B, str(number)) for number in range(4)]
        await publications[0].committed()
        with pytest.raises(Exception, match="ERR_INVALID_TOPIC"):
            await publications[1].committed()
        await publications[3].committed()
        assert (a.connections, a.session_id) == (2, "s2")
        await a.send(B, b"new")

    hello = framing.ServerHello(dedup_s=dedup_s)
    async with scripted(body, hello=hello, repeat_in_doubt=repeat) as (peer, first):
        sends = await cut_after_three(peer, hello)
        again = peer.line
        assert first.hello is not None
        assert again.hello is not None
        assert again.init is not None
        assert again.hello.publisher == first.hello.publisher
        assert again.init.resume_session_id == "s1"
        assert [await again.next(framing.Send), await again.next(framing.Send)] == sends[2:]
        await again.say(framing.Ack(sends[3].seq))
        new = await again.next(framing.Send)
        assert new.seq > sends[3].seq
        await again.say(framing.Ack(new.seq))


async def test_without_memory_in_the_gateway_what_was_not_settled_is_in_doubt() -> None:
    async def body(a: AgentClient) -> None:
        publications = [await a.publish(B, str(number)) for number in range(4)]
        for publication in publications[2:]:
            with pytest.raises(ConnectionLost) as caught:
                await publication.committed()
            assert caught.value.in_doubt
        with pytest.raises(Exception, match="ERR_INVALID_TOPIC"):
            await a.flush()

    forgetful = framing.ServerHello(dedup_s=0)
    async with scripted(body, hello=forgetful) as (peer, _):
        await cut_after_three(peer, forgetful)
        assert [type(event) for event in await peer.line.end()] == [framing.GoAway]


async def test_what_was_never_sent_waits_for_the_next_connection() -> None:
    lost = trio.Event()

    async def body(a: AgentClient) -> None:
        await lost.wait()
        await a.send(B, b"x")

    async with scripted(body, on_disconnected=lambda _why: lost.set(), hello=framing.ServerHello(dedup_s=0)) as (
        peer,
        _,
    ):
        again = await peer.cut(framing.ServerHello(dedup_s=0))
        await again.say(framing.Ack((await again.next(framing.Send)).seq))


async def test_a_cancelled_send_that_was_not_written_is_withdrawn() -> None:
    async def body(a: AgentClient) -> None:
        first = await a.publish(B, b"first")
        with trio.move_on_after(0.01):
            await a.send(B, b"withdrawn")
        assert a._dispatch.send_queue.unsettled == 1
        await first.committed()
        await a.send(B, b"third")

    async with scripted(body, hello=framing.ServerHello(publish_window=1)) as (_, line):
        first = await line.next(framing.Send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await line.say(framing.Ack(first.seq))
        third = await line.next(framing.Send)
        assert third.payload == b"third"
        await line.say(framing.Ack(third.seq))


async def test_what_no_frame_can_hold_is_refused_here() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            async with agent(peer.address, "a", max_unsettled_bytes=1) as a:
                with pytest.raises(PayloadTooLarge):
                    await a.send(B, bytes(5 * 1024 * 1024))

        nursery.start_soon(body)
        line = await peer.knock()
        line.connection = framing.FramedConnection(framing.Side.SERVER, max_frame_bytes=4 * 1024 * 1024)
        await line.greet(framing.ServerHello(max_frame=4 * 1024 * 1024))
        await line.let_in()
        await line.end()


async def test_goaway_starts_nothing_new_and_leaves_when_all_is_settled() -> None:
    async def body(a: AgentClient) -> None:
        await a.publish(B, b"before")
        told = await a.publish(B, b"before too")
        await told.committed()
        await a.send(B, b"after")

    async with scripted(body) as (peer, line):
        sends = [await line.next(framing.Send), await line.next(framing.Send)]
        await line.say(framing.GoAway(framing.GoAwayReason.DRAINING, 30_000), framing.Ack(sends[0].seq))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await line.say(framing.Ack(sends[1].seq))
        assert [type(event) for event in await line.end()] == [framing.GoAway]
        again = await peer.accept()
        send = await again.next(framing.Send)
        assert send.payload == b"after"
        await again.say(framing.Ack(send.seq))


async def test_a_block_that_ends_with_something_unconfirmed_says_so() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(ConnectionLost, match="1 messages were not confirmed"):
                async with agent(peer.address, "a", close_timeout_s=0.05) as a:
                    await a.publish(B, b"x")

        nursery.start_soon(body)
        line = await peer.accept()
        await line.next(framing.Send)
        await line.end()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_unreachable_is_said_at_once_when_it_is_asked_so(backend: str) -> None:
    async def connect(address: str) -> None:
        with pytest.raises(Unavailable, match=f"cannot connect to {address}: Connection refused") as caught:
            async with agent(address, "a", retry=Retry(max_attempts=0)):
                pytest.fail("a gateway is there")
        assert caught.value.retryable

    async with open_peer() as peer:
        address = peer.address
    await run_on(backend, connect, address)


async def test_who_takes_connections_and_says_nothing_is_no_gateway() -> None:
    async with open_peer() as peer:
        why = f"{peer.address} takes connections, .* is it the port of a gateway"
        with pytest.raises(Unavailable, match=why) as caught:
            async with agent(peer.address, "a", connect_timeout_s=2):
                pytest.fail("a gateway has answered")
    assert (caught.value.code, caught.value.retryable) == ("CONNECT_TIMEOUT", True)


async def test_a_send_that_was_given_up_while_the_gateway_is_away_is_not_sent_when_it_is_back() -> None:
    """A message that was given up must not come hours later."""
    lost, given_up = trio.Event(), trio.Event()

    async def body(a: AgentClient) -> None:
        kept = await a.publish(B, b"kept")
        async with trio.open_nursery() as sending:
            sending.start_soon(a.send, B, b"written before the cut")
            await lost.wait()
            sending.cancel_scope.cancel()
        with trio.move_on_after(0.01):
            await a.send(B, b"never written")
        with trio.move_on_after(0.01):
            await a.kv.get("never asked")
        given_up.set()
        await a.send(B, b"afterwards")
        await kept.committed()
        now = a.statistics()
        assert (now.committed, now.in_doubt, now.not_sent, now.unsettled) == (2, 1, 1, 0)

    async with scripted(body, on_disconnected=lambda _why: lost.set()) as (peer, line):
        sends = [await line.next(framing.Send), await line.next(framing.Send)]
        await line.stream.aclose()
        await given_up.wait()
        again = await peer.accept()
        kept, afterwards = await again.next(framing.Send), await again.next(framing.Send)
        assert (kept.payload, afterwards.payload) == (b"kept", b"afterwards")
        numbers = (sends[0].seq, sends[1].seq + 1)
        assert (kept.seq, afterwards.seq) == numbers, "a number stands for one message for good"
        await again.say(framing.Ack(afterwards.seq))
        assert [type(event) for event in await again.end()] == [framing.GoAway]


async def test_what_a_second_cut_puts_in_doubt_is_not_sent_by_the_third_connection() -> None:
    """The second connection has no room for all, and its gateway forgets."""
    outcomes: list[str] = []

    async def send(a: AgentClient, number: int) -> None:
        try:
            await a.send(B, str(number))
            outcomes.append("committed")
        except ConnectionLost as error:
            outcomes.append("in doubt" if error.in_doubt else "not sent")

    async def body(a: AgentClient) -> None:
        async with trio.open_nursery() as sends:
            for number in range(6):
                sends.start_soon(send, a, number)
        await a.send(B, b"afterwards")
        now = a.statistics()
        assert (now.committed, now.in_doubt, now.not_sent, now.unsettled) == (1, 6, 0, 0)

    async with scripted(body, hello=framing.ServerHello(dedup_s=60)) as (peer, line):
        for _ in range(6):
            await line.next(framing.Send)
        again = await peer.cut(framing.ServerHello(dedup_s=60, publish_window=2))
        for _ in range(2):
            await again.next(framing.Send)
        again = await peer.cut(framing.ServerHello(dedup_s=0))
        afterwards = await again.next(framing.Send)
        assert afterwards.payload == b"afterwards"
        await again.say(framing.Ack(afterwards.seq))
    assert outcomes == ["in doubt"] * 6
