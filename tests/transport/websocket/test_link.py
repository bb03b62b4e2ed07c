"""The Link on a real socket, with a function of the test in place of a session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from wsproto.events import CloseConnection, Ping, Pong

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.link import Link, LinkBroken
from aether_trio.transport.websocket import link as link_module
from aether_trio.transport.websocket.server import HttpServer
from aether_trio.wire.browser import CODECS, JSON, MSGPACK, PROTO, Codec
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import message_to
from tests.transport.websocket.harness import Client, Closed, open_socket, open_transport


class Source:
    """A FrameSource with a list of messages."""

    control_bytes = ephemeral_bytes = 0

    def __init__(self, messages: Sequence[pb.DownstreamMessage] = ()) -> None:
        self.waiting = [message.SerializeToString() for message in messages]
        self.pulled = self.flushed_upto = 0
        self.broken = trio.Event()

    def pull(self, max_bytes: int) -> list[bytes]:
        taken: list[bytes] = []
        while self.waiting and max_bytes > 0:
            max_bytes -= len(self.waiting[0])
            taken.append(self.waiting.pop(0))
        self.pulled += len(taken)
        return taken

    @property
    def delivery_bytes(self) -> int:
        return sum(map(len, self.waiting))

    def flushed(self) -> None:
        assert self.flushed_upto < self.pulled, "nothing was pulled since the last time"
        self.flushed_upto = self.pulled

    def cut(self) -> None:
        self.broken.set()


class Served:
    """What the function that serves a link has seen, and what was raised."""

    def __init__(self, link: Link, server: HttpServer) -> None:
        self.link = link
        self.server = server
        self.batches: list[Sequence[Any]] = []
        self.refusal: Exception | None = None
        self.done = trio.Event()

    @property
    def messages(self) -> list[Any]:
        return [message for batch in self.batches for message in batch]

    async def read(self) -> None:
        """Until the end; then close as a session would."""
        status, text = Status.OK, ""
        try:
            while batch := await self.link.receive():
                self.batches.append(batch)
        except LinkBroken as error:
            self.refusal = error
        except StatusError as error:
            self.refusal = error
            status, text = error.status, error.message
        await self.link.close(status, text)

    async def received(self, count: int) -> None:
        with trio.fail_after(300):
            while len(self.messages) < count:
                await trio.sleep(0.001)

    async def ended(self) -> None:
        with trio.fail_after(300):
            await self.done.wait()


Act = Callable[[Served], Awaitable[None]]


@asynccontextmanager
async def served(
    codec: Codec = PROTO, act: Act = Served.read, *, source: Source | None = None, **settings: Any
) -> AsyncIterator[tuple[Client, Served]]:
    """A client, and what its link has seen. The link sends `source`, then acts."""
    seen: list[Served] = []
    begun = trio.Event()

    async def serve(link: Link) -> None:
        seen.append(Served(link, transport.server))
        begun.set()
        try:
            if source is not None:
                link.attach(source)
                link.kick()
            await act(seen[0])
        finally:
            seen[0].done.set()

    settings.setdefault("principals", ("*",))
    async with open_transport(serve, **settings) as transport, open_socket(transport, codec) as client:
        with trio.fail_after(300):
            await begun.wait()
        yield client, seen[0]


def delivery(payload: bytes) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(msg=pb.IncomingMessage(source_topic="ag::a::b::c", payload=payload))


# -- coming in -------------------------------------------------------------------------------------


async def test_many_messages_of_one_read_are_one_batch() -> None:
    async with served() as (client, seen):
        messages = [message_to("t", b"%d" % number) for number in range(100)]
        await client.send(*messages)
        assert (await client.close()).code == 1000
        assert seen.messages == messages
        assert len(seen.batches) < 10


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
async def test_a_message_may_come_in_fragments_with_pings_between_them(codec: Codec) -> None:
    async with served(codec) as (client, seen):
        message = message_to("t", "snow \u2603".encode() * 100)
        data = codec.encode_upstream(message)
        parts = [data[:1], b"", data[1:5], data[5:]]
        for number, part in enumerate(parts):
            await client.send_bytes(client.frame(part, finished=number == len(parts) - 1))
            await client.ping(b"between")
        await client.send(message)
        await client.close()
        assert seen.messages == [message, message]


async def test_text_cut_inside_a_character_is_put_together() -> None:
    async with served(JSON) as (client, seen):
        data = json.dumps({"send": {"target_topic": "\u2603\U0001f600"}}, ensure_ascii=False).encode()
        cut = data.index("\u2603".encode()) + 1
        mask = b"\0\0\0\0"
        await client.send_bytes(bytes((0x01, 0x80 | cut)) + mask + data[:cut])
        await client.send_bytes(bytes((0x80, 0x80 | (len(data) - cut))) + mask + data[cut:])
        await client.close()
        assert seen.messages[0].send.target_topic == "\u2603\U0001f600"


@pytest.mark.parametrize("codec", [PROTO, JSON], ids=["proto", "json"])
@pytest.mark.parametrize("fragments", [1, 7])
async def test_a_message_that_is_too_long(codec: Codec, fragments: int) -> None:
    async with served(codec, max_message_bytes=1024) as (client, seen):
        fits = "x" if codec is JSON else b"x"
        await client.send(message_to("t", b"small"))
        filler = (fits * 1100) if codec is PROTO else '{"send":"' + "\u2603" * 400
        raw = filler if isinstance(filler, bytes) else filler.encode()
        size = 3 * (len(raw) // fragments // 3) + 3
        for at in range(0, len(raw), size):
            part = raw[at : at + size]
            text = part.decode("utf-8", "ignore").encode() if codec is JSON else part
            await client.send_bytes(client.frame(text, finished=at + size >= len(raw)))
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1009, "a WebSocket message is longer than 1024 bytes")
        assert seen.messages == [message_to("t", b"small")]


@pytest.mark.parametrize(
    ("codec", "data", "code", "reason"),
    [
        (PROTO, b"\xff\xff", 4203, "cannot decode UpstreamMessage"),
        (JSON, b'{"send": {"payload": "?"}}', 4203, "send.payload: expected base64 text, not '?'"),
        (JSON, b'{"send"', 4203, "cannot decode JSON: Input data was truncated"),
        (MSGPACK, b"\x81\xa4send\x05", 4203, "send: expected a map of fields, not a number"),
    ],
)
async def test_what_cannot_be_decoded(codec: Codec, data: bytes, code: int, reason: str) -> None:
    async with served(codec) as (client, seen):
        await client.send(message_to("t", b"before"))
        await client.send_bytes(client.frame(data))
        closed = await client.closed()
        assert closed.code == code
        assert closed.reason.startswith(reason)
        assert seen.messages == [message_to("t", b"before")]


@pytest.mark.parametrize(
    ("codec", "raw", "code"),
    [
        (JSON, b"\x82\x80\0\0\0\0", 1003),  # binary where text is spoken
        (PROTO, b"\x81\x80\0\0\0\0", 1003),
        (MSGPACK, b"\x81\x80\0\0\0\0", 1003),
        (JSON, b"\x81\x82\0\0\0\0\xc3\x28", 1007),  # not UTF-8
        (PROTO, b"\x82\x00", 1002),  # a client's frame without a mask
        (PROTO, b"\xc2\x80\0\0\0\0", 1002),  # compressed, which was not agreed upon
        (PROTO, b"\x80\x80\0\0\0\0", 1002),  # goes on with nothing
        (PROTO, b"\x83\x80\0\0\0\0", 1002),  # no such kind of frame
        (PROTO, b"\x09\x80\0\0\0\0", 1002),  # a ping in fragments
        (PROTO, b"\x88\x81\0\0\0\0\x03", 1002),  # half a close code
        (PROTO, b"\x88\x82\0\0\0\0\x03\xed", 1002),  # 1005 is never sent
    ],
)
async def test_frames_that_break_the_protocol(codec: Codec, raw: bytes, code: int) -> None:
    async with served(codec) as (client, seen):
        await client.send_bytes(raw)
        assert (await client.closed()).code == code
        await client.stream.aclose()
        await seen.ended()
        assert isinstance(seen.refusal, StatusError)


async def test_the_kind_of_the_first_message_is_looked_at_before_anything_else() -> None:
    async with served(principals=("user", "service")) as (client, seen):
        agent = pb.AgentIdentity(workspace="prod", implementation="a", specifier="1")
        await client.send(pb.UpstreamMessage(init=pb.InitConnection(agent=agent)))
        closed = await client.closed()
        assert closed.code == 4207
        assert closed.reason == "agent may not connect over WebSocket here; these may: service, user"
        assert seen.messages == []


# -- pings, rate -----------------------------------------------------------------------------------


async def test_of_pings_that_came_together_the_last_is_answered() -> None:
    async with served() as (client, _):
        await client.send_bytes(b"".join(client.ws.send(Ping(payload=b"%d" % number)) for number in range(1000)))
        while (event := await client.next_event()) != Pong(payload=b"999"):
            assert isinstance(event, Pong)


async def test_a_client_above_its_rate_is_read_more_slowly_and_loses_nothing() -> None:
    async with served(max_messages_per_s=50.0) as (client, seen):
        messages = [message_to("t", b"%d" % number) for number in range(510)]
        await client.send(*messages[:505])
        await seen.received(505)
        await client.send(*messages[505:])
        assert (await client.close()).code == 1000
        assert seen.messages == messages
        assert seen.server.statistics().rejects["paced"] >= 1


# -- going out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
async def test_what_is_pulled_arrives_in_order_and_is_flushed(codec: Codec) -> None:
    messages = [delivery(b"x" * size) for size in (0, 1, 124, 125, 126, 127, 65_000, 66_000, 200_000)]
    source = Source(messages)

    async with served(codec, source=source) as (client, _):
        for message in messages:
            assert await client.receive() == message
        assert source.flushed_upto == len(messages)
        assert (await client.close()).code == 1000


async def test_a_slow_reader_bounds_what_is_pulled_and_is_seen_to_stall() -> None:
    messages = [delivery(b"x" * 10_000) for _ in range(5000)]
    source = Source(messages)
    stalled = trio.Event()

    async def act(seen: Served) -> None:
        seen.link.attach(source)
        assert seen.link.stalled_since is None
        seen.link.kick()
        while seen.link.stalled_since is None:
            await trio.sleep(0)
        stalled.set()
        for _ in range(100):
            seen.link.kick()
        await seen.read()

    async with served(PROTO, act) as (client, seen):
        with trio.fail_after(300):
            await stalled.wait()
            # The kernel's buffers may still be growing; a few turns without progress are its limit.
            before = -1
            while source.pulled != before:
                before = source.pulled
                await trio.sleep(0.05)
        assert source.pulled < 2000
        # What a burst brought is flushed when the kernel has all of it, whether or not there is
        # more behind it.
        assert source.pulled - source.flushed_upto <= 7, "more than one burst"
        for message in messages:
            assert await client.receive() == message
        with trio.fail_after(300):
            while source.flushed_upto < len(messages):
                await trio.sleep(0.001)
        assert seen.link.stalled_since is None
        assert (await client.close()).code == 1000


async def test_a_link_that_is_not_read_stops_its_peer() -> None:
    go_on = trio.Event()

    async def act(seen: Served) -> None:
        await go_on.wait()
        await seen.read()

    async with served(PROTO, act, max_messages_per_s=1e6) as (client, seen):
        message = message_to("t", b"x" * 60_000)
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await client.stream.send_all(client.frames(message))
                sent += 1
        assert 0 < sent < 1000
        go_on.set()
        await seen.received(sent)


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_peers_close_frame_is_a_clean_end_and_is_answered(code: int) -> None:
    async with served() as (client, seen):
        await client.send(message_to("t", b"last"))
        closed = await client.close(code, "bye")
        assert (closed.code, closed.reason) == (code, "bye")
        with trio.fail_after(300):
            assert await client.stream.receive_some() == b""
        await seen.ended()
        assert seen.messages == [message_to("t", b"last")]
        assert seen.refusal is None


async def test_a_close_frame_without_a_code_is_answered_without_one() -> None:
    async with served() as (client, seen):
        await client.send_bytes(b"\x88\x80\0\0\0\0")
        with trio.fail_after(300):
            assert await client.stream.receive_some() == b"\x88\x00"
        await seen.ended()
        assert seen.refusal is None


async def test_our_close_comes_behind_what_was_pulled_and_waits_for_the_answer() -> None:
    source = Source([delivery(b"%d" % number) for number in range(50)])

    async def act(seen: Served) -> None:
        await seen.link.close(Status.UNAVAILABLE, "the gateway is shutting down; connect again")
        await seen.link.close(Status.INTERNAL, "twice")

    async with served(PROTO, act, source=source) as (client, seen):
        for number in range(50):
            assert (await client.receive()).msg.payload == b"%d" % number
        event = await client.next_event()
        assert isinstance(event, CloseConnection)
        assert (event.code, event.reason) == (4114, "the gateway is shutting down; connect again")
        assert not seen.done.is_set()
        await client.send_bytes(client.ws.send(event.response()))
        await seen.ended()
        with trio.fail_after(300):
            assert await client.stream.receive_some() == b""


async def test_a_peer_that_does_not_answer_our_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "ANSWER_S", 0.05)

    async with served(PROTO, lambda seen: seen.link.close(Status.CANCELLED, "kicked")) as (client, seen):
        await seen.ended()
        assert (await client.closed()).code == 4201


async def test_a_peer_that_reads_nothing_does_not_keep_us_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CLOSE_S", 0.05)
    source = Source([delivery(b"x" * 100_000) for _ in range(500)])

    async with served(PROTO, lambda seen: seen.link.close(Status.UNAVAILABLE, "stuck"), source=source) as (_, seen):
        await seen.ended()
        assert source.waiting


async def test_a_long_reason_is_cut_at_a_character() -> None:
    async with served(PROTO, lambda seen: seen.link.close(Status.PERMISSION_DENIED, "\u2603" * 100)) as (client, _):
        closed = await client.closed()
        assert (closed.code, closed.reason) == (4207, "\u2603" * 41)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_a_connection_that_ends_without_a_close_frame_is_cut(reset: bool) -> None:
    source = Source()

    async with served(source=source) as (client, seen):
        await client.send(message_to("t", b"last"))
        await seen.received(1)
        await client.cut(reset=reset)
        await seen.ended()
        assert isinstance(seen.refusal, LinkBroken)
        assert source.broken.is_set()
        late = Source()
        seen.link._output._source = None  # type: ignore[attr-defined]  # as if the session had not attached yet
        seen.link.attach(late)
        assert late.broken.is_set()


async def test_a_source_that_waits_for_room_hears_of_the_cut() -> None:
    source = Source([delivery(b"x" * 100_000) for _ in range(500)])

    async with served(PROTO, lambda _: source.broken.wait(), source=source) as (client, seen):
        await client.cut(reset=True)
        await seen.ended()


async def test_a_link_that_fails_while_its_writer_waits_leaves_no_task_behind() -> None:
    async def act(seen: Served) -> None:
        assert seen.link.stalled_since is not None

    async with served(PROTO, act, source=Source([delivery(b"x" * 100_000) for _ in range(500)])) as (client, seen):
        await seen.ended()
        with pytest.raises(Closed):
            while True:
                await client.receive()


async def test_a_link_that_is_not_read_knows_that_its_peer_has_gone() -> None:
    begun, gone = trio.Event(), trio.Event()

    async def act(seen: Served) -> None:
        assert not seen.link.peer_has_ended()
        begun.set()
        while not seen.link.peer_has_ended():
            await trio.sleep(0.001)
        gone.set()

    async with served(PROTO, act) as (client, _):
        with trio.fail_after(300):
            await begun.wait()
            await client.send(message_to("t", b"unread"))
            await client.stream.aclose()
            await gone.wait()


async def test_frames_that_say_nothing_leave_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    take = link_module.WebSocketLink._take

    def watched(link: link_module.WebSocketLink) -> Any:
        before = link._frames.unread_bytes
        batch = take(link)
        looks.append((before - link._frames.unread_bytes) // 6)
        return batch

    monkeypatch.setattr(link_module.WebSocketLink, "_take", watched)
    async with served(PROTO, max_messages_per_s=1e6) as (client, seen):
        message = message_to("t", b"x")
        empty = b"\x00\x80\0\0\0\0"
        data = PROTO.encode_upstream(message)
        await client.send_bytes(
            b"\x02\x80\0\0\0\0" + empty * 11_000 + bytes((0x80, 0x80 | len(data))) + bytes(4) + data
        )
        assert (await client.close()).code == 1000
        assert seen.messages == [message]
    assert max(looks) <= link_module.FRAMES_AT_ONCE
    assert sum(looks) >= 11_000


async def test_fragments_that_say_nothing_are_paced() -> None:
    async with served(max_messages_per_s=50.0) as (client, seen):
        await client.send_bytes(b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 511)
        with trio.fail_after(300):
            while not seen.server.statistics().rejects.get("paced"):
                await trio.sleep(0.001)


async def test_a_message_before_the_client_is_accepted_is_shorter() -> None:
    async with served() as (client, seen):
        await client.send(message_to("t", bytes(400 * 1024)))
        await client.send_bytes(b"\x82\xff" + (513 * 1024).to_bytes(8) + bytes(4))
        assert (await client.closed()).reason == "a WebSocket message is longer than 524288 bytes"
        assert len(seen.messages) == 1
