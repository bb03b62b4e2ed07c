"""The data plane without sockets: splits mean nothing, and no bytes do harm."""

from __future__ import annotations

import itertools
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.message_encoding import SLICE_BYTES, CompressedMessage, Decompression, with_prefixes
from aether_trio.transport.grpc.message_stream import AssemblyBudget, MessageStream
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.dataplane import DataPlane
from aether_trio.transport.http2.flood_budgets import FloodBudgets
from aether_trio.transport.http2.frames import Http2ErrorCode, Http2Violation
from aether_trio.transport.http2.limits import Allowances
from aether_trio.transport.http2.stream import Http2Stream
from tests.transport.grpc.harness import data, frame, message, parse_frames, settings

MIB = 1024 * 1024
MOST_TURNS = 10_000
"""In which everything that is fed here at once has been looked at; the longest takes some hundred.
"""


class Side:
    """A data plane and its owner: HEADERS open streams, RST_STREAM ends them."""

    def __init__(self, *, is_client: bool = False, **limits: int) -> None:
        self.limits = GrpcLimits(**limits)  # type: ignore[arg-type]
        self.plane = DataPlane(
            self,
            self.limits,
            FloodBudgets(flood_budgets.allowance_table(Allowances()), lambda: 0.0),
            expect_preface=not is_client,
        )
        self.ended: list[int] = []
        self.errors: list[tuple[int, Http2ErrorCode]] = []
        self.controls: list[int] = []
        self.streams: dict[int, Http2Stream] = {}
        self.messages: dict[int, MessageStream] = {}
        self.budget = AssemblyBudget(self.limits)
        self.batches: dict[int, list[bytes]] = {}

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        self.controls.append(kind)
        if kind == frames.HEADERS and stream_id % 2:
            self.plane.open(self.message_stream(stream_id).stream)
        elif kind == frames.RST_STREAM and stream_id in self.plane.streams:
            self.plane.close(self.plane.streams[stream_id])

    def message_stream(self, stream_id: int, encoding: str = "identity") -> MessageStream:
        handler: Any = None
        connection: Any = SimpleNamespace(plane=self.plane)
        messages = MessageStream(stream_id, handler, connection, self.budget, encoding=encoding)
        self.messages[stream_id], self.streams[stream_id] = messages, messages.stream
        return messages

    def end_of_stream(self, stream: Http2Stream) -> None:
        self.ended.append(stream.stream_id)

    def stream_error(self, stream_id: int, code: Http2ErrorCode, text: str) -> None:
        self.errors.append((stream_id, code))
        stream = self.plane.streams.get(stream_id)
        if stream is not None:
            self.plane.close(stream)

    def feed(self, *parts: bytes, read: bool = True) -> None:
        for part in parts:
            self._feed(part, read=read)
            for _ in range(MOST_TURNS):
                if not self.plane.more:
                    break
                self._feed(b"", read=read)
            else:
                pytest.fail("there is always more")

    def _feed(self, data: bytes, *, read: bool) -> None:
        self.plane.receive(data)
        self.plane.touched.clear()
        if read:
            for stream in list(self.plane.streams.values()):
                batches = self.batches.setdefault(stream.stream_id, [])
                batches += self.plane.take(stream)
                while stream.inbox:
                    taken = self.plane.take(stream)
                    assert taken, "nothing is taken of what there is"
                    batches += taken

    @classmethod
    def opened(cls, *stream_ids: int, **limits: int) -> Side:
        side = cls(**limits)
        side.feed(frames.PREFACE + settings(), *(headers(stream_id) for stream_id in stream_ids or (1,)))
        return side

    def output(self) -> bytes:
        out = b"".join(self.plane.out)
        self.plane.out.clear()
        return out

    def updates(self) -> dict[int, int]:
        """Window given back by what is in the output, by stream."""
        given: dict[int, int] = {}
        for kind, _, stream_id, body in parse_frames(self.output()):
            if kind == frames.WINDOW_UPDATE:
                given[stream_id] = given.get(stream_id, 0) + struct.unpack(">I", body)[0]
        return given


def headers(stream_id: int) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS, stream_id, b"\x82")


def split(content: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({cut % (len(content) + 1) for cut in cuts} | {0, len(content)})
    return [content[a:b] for a, b in itertools.pairwise(points)]


payloads = st.lists(st.binary(max_size=300), max_size=12)


@given(
    first=payloads,
    second=payloads,
    chunks=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    padding=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
    interleave=st.booleans(),
)
def test_every_split_of_a_valid_stream_gives_the_same_messages(
    first: list[bytes], second: list[bytes], chunks: list[int], padding: int, cuts: list[int], interleave: bool
) -> None:
    parts: list[list[bytes]] = []
    for stream_id, messages in ((1, first), (3, second)):
        body, pieces, at = b"".join(map(message, messages)), [], 0
        while at < len(body):
            size = chunks[at % len(chunks)]
            chunk = body[at : at + size]
            at += size
            padded = frame(frames.DATA, frames.PADDED, stream_id, bytes([padding]) + chunk + b"\0" * padding)
            pieces.append(padded if padding else data(stream_id, chunk))
        pieces.append(data(stream_id, b"", end=True))
        parts.append(pieces)
    order = [piece for pair in zip(*parts, strict=False) for piece in pair] if interleave else []
    for pieces in parts:
        order += pieces[len(order) // 2 if interleave else 0 :]
    content = frames.PREFACE + settings() + headers(1) + headers(3) + b"".join(order)

    side = Side()
    side.feed(*split(content, cuts))

    assert {key: side.batches.get(key, []) for key in (1, 3)} == {1: first, 3: second}
    assert sorted(side.ended) == [1, 3]
    assert side.errors == []
    for messages in side.messages.values():
        stream = messages.stream
        assert stream.failure is None
        assert (messages.partial_bytes, stream.inbox, stream.unread, stream.held) == (0, [], 0, 0)


@pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize(
    "kind", [frames.DATA, frames.HEADERS, frames.PING, frames.WINDOW_UPDATE, frames.GOAWAY, frames.RST_STREAM]
)
def test_the_first_frame_is_settings_or_what_a_server_says_instead(kind: int, is_client: bool) -> None:
    """A port that speaks something else tells a client by GOAWAY."""
    side = Side(is_client=is_client)
    first = (b"" if is_client else frames.PREFACE) + frame(kind, 0, 0, bytes(8))
    if is_client and kind == frames.GOAWAY:
        side.feed(first)
        assert side.controls == [frames.GOAWAY]
        assert not side.plane.settings_seen
        return
    with pytest.raises(Http2Violation, match="the first frame is not SETTINGS"):
        side.feed(first)
    assert side.controls == []


@given(
    content=st.lists(
        st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40)),
        max_size=20,
    ).map(b"".join),
    mutations=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5),
    cuts=st.lists(st.integers(0, 10_000), max_size=10),
)
def test_random_frames_end_a_connection_or_a_stream_and_raise_nothing_else(
    content: bytes, mutations: list[tuple[int, int]], cuts: list[int]
) -> None:
    whole = bytearray(frames.PREFACE + settings() + headers(1) + content)
    for position, value in mutations:
        whole[position % len(whole)] = value
    side = Side()
    try:
        side.feed(*split(bytes(whole), cuts))
    except Http2Violation as violation:
        assert isinstance(violation.code, Http2ErrorCode)  # noqa: PT017 -- either outcome is right
    held = sum(side.messages[stream_id].partial_bytes for stream_id in side.plane.streams)
    assert held <= len(whole)


@given(size=st.integers(1, 200_000), updates=st.lists(st.tuples(st.booleans(), st.integers(1, 70_000)), max_size=30))
def test_data_exceeds_no_window_and_all_of_it_arrives_in_order(size: int, updates: list[tuple[bool, int]]) -> None:
    side = Side.opened()
    side.output()
    stream, body = side.streams[1], bytes(i % 251 for i in range(size))
    windows = {0: 65_535, 1: 65_535}
    sent = b""

    def collect() -> None:
        nonlocal sent
        for kind, _, stream_id, chunk in parse_frames(side.output()):
            assert (kind, stream_id) == (frames.DATA, 1)
            assert len(chunk) <= 16_384
            windows[0] -= len(chunk)
            windows[1] -= len(chunk)
            sent += chunk

    side.plane.send(stream, with_prefixes([body]))
    collect()
    for connection, increment in [*updates, (True, 400_000), (False, 400_000)]:
        stream_id = 0 if connection else 1
        windows[stream_id] += increment
        side.feed(frames.window_update(stream_id, increment))
        if stream in side.plane.ready:
            del side.plane.ready[stream]
            side.plane.send_pending(stream)
        collect()
        assert min(windows.values()) >= 0
    assert sent == message(body)


def test_a_smaller_initial_window_turns_an_open_one_negative_and_sending_waits_for_it() -> None:
    side = Side.opened()
    stream = side.streams[1]
    side.plane.send(stream, with_prefixes([b"x" * 50_000]))
    side.plane.peer_settings(1_000, None)
    assert side.plane.room(stream) == 1_000 - 50_005
    side.output()
    side.plane.send(stream, with_prefixes([b"y" * 10]))
    assert side.output() == b""
    side.feed(frames.window_update(1, 49_005))  # exactly zero
    assert stream in side.plane.blocked
    side.feed(frames.window_update(1, 15))
    assert stream in side.plane.ready
    assert side.plane.send_pending(stream)
    assert parse_frames(side.output())[0][3] == message(b"y" * 10)


def test_a_window_beyond_its_maximum_ends_the_stream_or_the_connection() -> None:
    side = Side.opened()
    side.feed(frames.window_update(1, 2**31 - 1))
    assert side.errors == [(1, Http2ErrorCode.FLOW_CONTROL_ERROR)]
    with pytest.raises(Http2Violation) as caught:
        side.feed(frames.window_update(0, 2**31 - 1))
    assert caught.value.code is Http2ErrorCode.FLOW_CONTROL_ERROR


def test_settings_that_overflow_a_window_end_the_connection() -> None:
    side = Side.opened()
    side.feed(frames.window_update(1, 2**31 - 1 - 65_535))
    with pytest.raises(Http2Violation) as caught:
        side.plane.peer_settings(65_536, None)
    assert caught.value.code is Http2ErrorCode.FLOW_CONTROL_ERROR


def test_a_reader_gives_room_back_at_half_a_window() -> None:
    side = Side.opened()
    side.output()
    side.feed(*[data(1, message(b"m" * 16_000))] * 2)
    assert side.updates() == {}
    side.feed(data(1, message(b"m" * 16_000)))
    assert side.updates() == {1: 3 * 16_005}


def test_a_stream_that_is_not_read_keeps_its_window_shut_and_no_other() -> None:
    side = Side.opened(1, 3, connection_window_bytes=100_000)
    side.output()
    for _ in range(4):
        side.feed(data(1, message(b"u" * 16_000)), read=False)
    assert side.updates() == {0: 4 * 16_005}, "the connection's room comes back, the stream's does not"
    side.feed(data(1, message(b"u" * 2_000)), read=False)
    assert side.errors == [(1, Http2ErrorCode.FLOW_CONTROL_ERROR)]
    side.feed(data(3, message(b"v")))
    assert side.batches[3] == [b"v"]


@pytest.mark.parametrize(
    ("body", "most"),
    [(message(b"u" * 16_000), 30_000), (message(b"uu") * 2_300, 100_000)],
    ids=["large messages", "small messages, seven times as much in memory"],
)
def test_too_much_unread_over_all_streams_shuts_the_connection_window(body: bytes, most: int) -> None:
    side = Side.opened(1, 3, connection_window_bytes=65_535, max_unread_bytes=most)
    side.output()
    side.feed(data(1, body), data(3, body), data(3, body), read=False)
    assert 0 not in side.updates()
    for stream in side.streams.values():
        while stream.inbox:
            side.plane.take(stream)
    assert side.updates()[0] == 3 * len(body)


def test_a_client_without_a_credential_leaves_less_unread_than_an_accepted_one() -> None:
    side = Side.opened(1, 3, connection_window_bytes=65_535, max_unauthenticated_unread_bytes=30_000)
    side.output()
    side.feed(*(data(1, message(b"u" * 16_000)) for _ in range(3)), read=False)
    assert 0 not in side.updates()
    side.plane.accepts()
    assert side.updates()[0] == 3 * 16_005


def test_a_waiting_reader_lets_a_message_grow_beyond_the_window() -> None:
    side = Side.opened()
    stream = side.streams[1]
    stream.reading = True
    body = message(b"b" * MIB)
    given = 65_535
    for at in range(0, len(body), 16_000):
        chunk = body[at : at + 16_000]
        given -= len(chunk)
        assert given >= 0
        side.feed(data(1, chunk), read=False)
        given += side.updates().get(1, 0)
    assert stream.inbox == [b"b" * MIB]


def test_the_cap_is_judged_by_the_prefix_alone() -> None:
    side = Side.opened(max_receive_message_bytes=1000)
    side.feed(data(1, struct.pack(">BI", 0, 1001)))
    stream = side.streams[1]
    assert stream.failure is not None
    assert stream.failure.status is Status.RESOURCE_EXHAUSTED
    assert side.messages[1].partial_bytes == 0
    side.feed(data(1, b"z" * 1000))
    assert side.messages[1].partial_bytes == 0
    assert stream.inbox == []


def test_many_large_messages_at_once_are_refused_by_what_they_announce() -> None:
    ids = (1, 3, 5, 7, 9)
    side = Side.opened(*ids, max_receive_message_bytes=MIB, max_assembling_bytes=4 * MIB)
    for stream_id in ids:
        side.feed(data(stream_id, struct.pack(">BI", 0, MIB)))
    assert [side.streams[stream_id].failure is not None for stream_id in ids] == [False] * 4 + [True]
    side.feed(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"), headers(11), data(11, struct.pack(">BI", 0, MIB)))
    assert side.streams[11].failure is None, "what a closed stream had reserved is free again"


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_compressed_messages_stay_compressed_until_they_are_read(encoding: str, wbits: int) -> None:
    side = Side.opened(3)
    side.plane.open(side.message_stream(1, encoding).stream)
    packed = squeeze(b"a" * 1_000_000, wbits)
    side.feed(data(1, message(packed, compressed=1) + message(b"plain")), read=False)
    assert side.streams[1].inbox == [packed, b"plain"]
    assert [type(one) for one in side.streams[1].inbox] == [CompressedMessage, bytes]
    assert side.messages[1]._packed == 1


def squeeze(content: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(content) + packer.flush()


def inflated(message: bytes, encoding: str, most: int) -> bytes:
    decompression = Decompression(message, encoding, most)
    while not decompression.step():
        assert decompression.size <= most
    return decompression.message()


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
@given(content=st.binary(max_size=100), repeat=st.sampled_from([1, 1000, SLICE_BYTES // 100, 20_000]))
def test_inflating_in_slices_gives_all_or_a_mistake(encoding: str, wbits: int, content: bytes, repeat: int) -> None:
    plain = content * repeat
    packed = squeeze(plain, wbits)
    assert inflated(packed, encoding, len(plain)) == plain
    assert inflated(packed + b"behind", encoding, len(plain)) == plain
    with pytest.raises(StatusError) as caught:
        inflated(packed[:-1], encoding, len(plain))
    assert caught.value.status is Status.INTERNAL
    if plain:
        with pytest.raises(StatusError) as caught:
            inflated(packed, encoding, len(plain) - 1)
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
    with pytest.raises(StatusError) as caught:
        inflated(b"nonsense" + packed, encoding, len(plain))
    assert caught.value.status is Status.INTERNAL


def test_a_compressed_flag_without_an_encoding_fails_the_stream() -> None:
    side = Side.opened()
    side.feed(data(1, message(b"x", compressed=1)))
    assert side.streams[1].failure is not None
    assert side.streams[1].failure.status is Status.INTERNAL


def test_what_comes_for_a_stream_that_has_failed_is_dropped_and_still_has_to_obey_the_rules() -> None:
    failed = data(1, message(b"x", compressed=1))
    for rest, code in (
        (frame(frames.DATA, frames.PADDED, 1, b"\x05" + b"\0" * 5) * 101, Http2ErrorCode.ENHANCE_YOUR_CALM),
        (frame(frames.DATA, frames.PADDED, 1, b"\x05abc"), Http2ErrorCode.PROTOCOL_ERROR),
    ):
        side = Side.opened()
        side.feed(failed, frame(frames.DATA, frames.PADDED, 1, b"\x05" + b"x" + b"\0" * 5) * 100)
        assert side.batches[1] == []
        with pytest.raises(Http2Violation) as caught:
            side.feed(rest)
        assert caught.value.code is code
    side = Side.opened()
    side.feed(failed, data(1, b"the rest", end=True), data(1, b"late"))
    assert (side.ended, side.errors) == ([1], [(1, Http2ErrorCode.STREAM_CLOSED)])


def test_an_end_inside_a_message_is_a_failure() -> None:
    side = Side.opened()
    side.feed(data(1, message(b"whole") + b"\0\0", end=True))
    assert side.batches[1] == [b"whole"]
    assert side.streams[1].failure is not None


PROTOCOL_ERROR, FRAME_SIZE_ERROR = Http2ErrorCode.PROTOCOL_ERROR, Http2ErrorCode.FRAME_SIZE_ERROR
BEGUN = frames.PREFACE + settings()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", PROTOCOL_ERROR),
        (frames.PREFACE + headers(1), PROTOCOL_ERROR),
        (BEGUN + data(1, b""), PROTOCOL_ERROR),
        (BEGUN + data(0, b""), PROTOCOL_ERROR),
        (BEGUN + frames.window_update(1, 5), PROTOCOL_ERROR),
        (BEGUN + frames.window_update(0, 0), PROTOCOL_ERROR),
        (BEGUN + frame(frames.WINDOW_UPDATE, 0, 0, b"abc"), FRAME_SIZE_ERROR),
        (BEGUN + struct.pack(">IBI", 16_385 << 8, 0, 1), FRAME_SIZE_ERROR),
        (BEGUN + frame(frames.CONTINUATION, 0, 1), PROTOCOL_ERROR),
        (BEGUN + frame(frames.HEADERS, 0, 1) + frames.ping(b"12345678"), PROTOCOL_ERROR),
        (BEGUN + frame(frames.HEADERS, 0, 1) + data(1, b""), PROTOCOL_ERROR),
        (BEGUN + frame(frames.HEADERS, 0, 1) + frame(frames.CONTINUATION, 4, 3), PROTOCOL_ERROR),
        (BEGUN + headers(1) + frame(frames.DATA, frames.PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (BEGUN + headers(1) + frame(frames.DATA, frames.PADDED, 1), PROTOCOL_ERROR),
    ],
)
def test_broken_rules_end_the_connection_with_the_right_code(content: bytes, code: Http2ErrorCode) -> None:
    side = Side()
    with pytest.raises(Http2Violation) as caught:
        side.feed(content)
    assert caught.value.code is code


def test_data_after_the_peers_end_of_stream_resets_the_stream() -> None:
    side = Side.opened()
    side.feed(data(1, b"", end=True), data(1, message(b"late")))
    assert side.errors == [(1, Http2ErrorCode.STREAM_CLOSED)]
    assert side.batches[1] == []


def test_data_on_a_closed_stream_is_answered_and_still_counts_for_the_connection() -> None:
    side = Side.opened(connection_window_bytes=65_535)
    side.output()
    side.feed(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"), *[data(1, b"x" * 16_000)] * 3)
    assert side.errors == [(1, Http2ErrorCode.STREAM_CLOSED)] * 3
    assert side.updates() == {0: 48_000}
