"""A client cannot tell whether h2 judges its frames, or a remembered judgement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2Violation
from aether_trio.transport.http2.h2_engine import SharedH2State
from aether_trio.transport.http2.server_settings_and_headers import ServerSettingsAndHeaders, as_text
from aether_trio.transport.http2.stream import DISCARDED, Http2Stream
from tests.transport.grpc.harness import Frame, Port, RawClient, data, frame, message, settings

ACK = frame(frames.SETTINGS, frames.ACK, 0)
PING = frame(frames.PING, 0, 0, b"lastword")
HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/probe.Probe/Echo"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def request(
    encoder: hpack.Encoder, stream_id: int, *more: tuple[str, str], end: bool = False, path: str = "/probe.Probe/Echo"
) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
    fields = [*HEADERS[:2], (":path", path), *HEADERS[3:], *more]
    return frame(frames.HEADERS, flags, stream_id, encoder.encode(fields))


def trailers(encoder: hpack.Encoder) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, encoder.encode([("x-last", "1")]))


def plain() -> hpack.Encoder:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder


def echo_twice() -> list[bytes]:
    say = plain()
    return [
        request(say, 1) + data(1, message(b"a"), end=True),
        ACK + request(say, 3, ("x-other", "one")) + data(3, message(b"b"), end=True),
    ]


def a_table_in_use() -> list[bytes]:
    """As grpc-core does: entries go into the table at once, until SETTINGS forbid it."""
    say = hpack.Encoder()
    first = request(say, 1, ("x-kept", "1")) + data(1, message(b"a"), end=True)
    second = request(say, 3, ("x-kept", "1")) + data(3, message(b"b"), end=True)
    say.header_table_size = 0
    return [first, second, ACK + request(say, 5, ("x-kept", "1")) + data(5, message(b"c"), end=True)]


def a_table_too_large() -> list[bytes]:
    say = hpack.Encoder()
    return [request(say, 1) + ACK + request(say, 3, ("x-new", "1")), PING]


def trailers_from_the_client() -> list[bytes]:
    say = plain()
    return [request(say, 1) + data(1, message(b"a")), trailers(say)]


def headers_on_an_ended_stream() -> list[bytes]:
    say = plain()
    return [request(say, 1, path="/probe.Probe/Hang") + data(1, b"", end=True) + trailers(say)]


def an_old_stream_again() -> list[bytes]:
    say = plain()
    return [request(say, 5, end=True), request(say, 3, end=True), PING]


def headers_on_a_reset_stream() -> list[bytes]:
    """We reset it because the window was overrun; what was on its way is forgiven."""
    say = plain()
    overrun = b"".join(data(1, bytes(16_384)) for _ in range(5))
    return [request(say, 1, path="/probe.Probe/Hang") + overrun, request(say, 1, end=True) + PING]


def a_bad_request() -> list[bytes]:
    return [request(plain(), 1, ("Upper", "case"))]


def an_even_stream() -> list[bytes]:
    return [request(plain(), 2)]


CONVERSATIONS = [
    echo_twice,
    a_table_in_use,
    a_table_too_large,
    trailers_from_the_client,
    headers_on_an_ended_stream,
    an_old_stream_again,
    headers_on_a_reset_stream,
    a_bad_request,
    an_even_stream,
]


async def answers(port: Port, steps: list[bytes]) -> list[Frame]:
    """Send each step when a ping shows that the last is served; give all answers."""
    client = await RawClient.connect(port)
    client.acks_settings = False
    for number, step in enumerate(steps):
        mark = b"step%04d" % number
        await client.send(step, frame(frames.PING, 0, 0, mark))
        while (found := await client.next()) is not None:
            if found.kind == frames.PING and found.body == mark:
                break
        await wait_all_tasks_blocked()  # and its RPCs have done what they can
    if client.seen[-1].kind != frames.GOAWAY:
        # A half-closed connection is served to its end.
        await client.stream.send_eof()
    await client.rest()
    await client.stream.aclose()
    return sorted(client.seen)  # streams take turns as they like


@pytest.mark.parametrize("conversation", CONVERSATIONS)
async def test_remembered_or_judged_makes_no_difference(port: Port, conversation: Callable[[], list[bytes]]) -> None:
    first = await answers(port, conversation())
    for _ in range(2):
        assert await answers(port, conversation()) == first


async def test_the_second_of_a_kind_gets_an_h2_when_it_says_something_new(server: GrpcServer, port: Port) -> None:
    for number, expected in enumerate((True, False, False)):
        client = await RawClient.connect(port)
        await client.send(request(plain(), 1), data(1, message(b"a")))
        await client.payload(1, 6)
        (connection,) = server.connections
        assert (connection.settings_and_headers._h2 is not None) is expected
        await client.send(request(plain(), 3, ("x-new", str(number))), data(3, message(b"b"), end=True))
        assert await client.trailers(3)
        assert connection.settings_and_headers._h2 is not None
        await client.send(data(1, b"", end=True))
        assert await client.trailers(1)
        await client.stream.aclose()
        await connection.wait_ended()


async def test_settings_are_bounded_and_applied_each_time(server: GrpcServer, port: Port) -> None:
    for window in (3, 3, *range(200), 3):
        client = await RawClient.connect(port, settings(window=window))
        await client.send(request(plain(), 1), data(1, message(b"abcdef")))
        if window:
            assert (await client.until_kind(frames.DATA)).body == message(b"abcdef")[:window]
        await client.stream.aclose()
    assert len(server._shared.peer_settings) <= 64


class Plane:
    """What a ServerSettingsAndHeaders asks of its plane."""

    def __init__(self) -> None:
        self.streams: dict[int, Http2Stream] = {}
        self.highest_stream_id = 0
        self.out: list[bytes] = []

    def is_idle(self, stream_id: int) -> bool:
        return stream_id > self.highest_stream_id or stream_id % 2 == 0


class Peer:
    """Carries out steps on one ServerSettingsAndHeaders and notes the results."""

    def __init__(self, shared: SharedH2State) -> None:
        self.plane = Plane()
        self.control = ServerSettingsAndHeaders(shared, self.plane)  # type: ignore[arg-type]
        self.encoder = hpack.Encoder()
        self.seen: list[object] = []

    def do(self, step: tuple[Any, ...]) -> bool:
        try:
            self.seen.append(getattr(self, step[0])(*step[1:]))
        except Http2Violation as violation:
            self.seen.append((violation.code, violation.debug))
            return False
        return True

    def settings(self, body: bytes) -> object:
        return self.control.settings(frame(frames.SETTINGS, 0, 0, body))

    def ack(self) -> None:
        self.control.acked(ACK)

    def table(self, size: int) -> None:
        self.encoder.header_table_size = size

    def headers(self, stream_id: int, end: bool, fields: list[tuple[str, str]]) -> object:
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        sent = frame(frames.HEADERS, flags, stream_id, self.encoder.encode(fields))
        known = self.control.known_request(flags, stream_id, sent)
        found: list[object] = []
        if known is not None:
            found = [("request", stream_id, known)] + ([("ended", stream_id)] if end else [])
        else:
            for event in self.control.receive(frames.HEADERS, flags, sent):
                if isinstance(event, h2.events.RequestReceived):
                    found.append(("request", event.stream_id, as_text(event.headers)))
                elif isinstance(event, h2.events.StreamEnded):
                    found.append(("ended", event.stream_id))
                elif isinstance(event, (h2.events.TrailersReceived, h2.events.StreamReset)):
                    found.append((type(event).__name__, event.stream_id))
        for kind, on, *_ in found:  # type: ignore[misc]
            if kind == "request":
                self.plane.streams[on] = Http2Stream(on, NO_HANDLER, DISCARDED)
                self.plane.highest_stream_id = max(self.plane.highest_stream_id, on)
            elif kind == "ended" and on in self.plane.streams:
                self.plane.streams[on].ended = True
        return found, self.plane.out.copy()

    def end(self, stream_id: int) -> None:
        if stream_id in self.plane.streams and not self.plane.streams[stream_id].ended:
            self.plane.streams[stream_id].ended = True
            self.control.end_of_stream(stream_id)

    def forget(self, stream_id: int, by_reset: bool) -> None:
        if self.plane.streams.pop(stream_id, None) is not None:
            if by_reset:
                self.control.forget(stream_id, reset_by_us=True)
            self.control.forget(stream_id)


NO_HANDLER: Any = None
STREAMS = st.integers(1, 9)
FIELDS = st.sampled_from(
    [
        list(HEADERS),
        [*HEADERS, ("x-more", "1")],
        [*HEADERS, ("content-length", "7")],
        [*HEADERS, ("cookie", "a"), ("cookie", "b")],
        [("x-last", "1")],
        [*HEADERS, ("Upper", "1")],
    ]
)
BODIES = st.sampled_from(
    [b"", *(settings(**values)[9:] for values in ({"window": 9}, {"table": 0, "push": 0}, {"push": 3}))]
)
STEPS = st.one_of(
    st.tuples(st.just("settings"), BODIES),
    st.tuples(st.just("ack")),
    st.tuples(st.just("table"), st.sampled_from([0, 100, 4096])),
    st.tuples(st.just("headers"), STREAMS, st.booleans(), FIELDS),
    st.tuples(st.just("headers"), STREAMS, st.booleans(), FIELDS),
    st.tuples(st.just("end"), STREAMS),
    st.tuples(st.just("forget"), STREAMS, st.booleans()),
)


@given(first=st.lists(STEPS, max_size=12), second=st.lists(STEPS, max_size=12))
def test_any_history_is_judged_as_by_h2_alone(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> None:
    limits = GrpcLimits()
    warm = SharedH2State(limits, client_side=False)
    for steps in (first, second, second):
        alone, among_others = Peer(SharedH2State(limits, client_side=False)), Peer(warm)
        alone.control._engine()  # h2 from the beginning
        for step in steps:
            if not (alone.do(step) & among_others.do(step)):
                break
        assert among_others.seen == alone.seen
