"""The decoder: splits, mutations, and how much it keeps."""

from __future__ import annotations

import struct
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire.framing import (
    Envelope,
    ErrorCode,
    Event,
    FrameDecoder,
    Ping,
    RemoteProtocolError,
    Send,
    encode,
    encode_envelope,
    encode_ping,
    encode_send,
    join,
)
from aether_trio.wire.framing.constants import PREFACE
from tests.wire.framing.strategies import events, splits

streams = st.lists(events, max_size=8)


def decode(decoder: FrameDecoder, parts: list[bytes]) -> tuple[list[Event], ErrorCode | None]:
    found: list[Event] = []
    for part in parts:
        try:
            found += decoder.receive(part)
        except RemoteProtocolError as error:
            return [*found, *error.events], error.code
    return found, None


@given(st.data(), streams)
def test_any_split_of_any_stream_decodes_the_same(data: st.DataObject, sent: list[Event]) -> None:
    stream = PREFACE + join(map(encode, sent))
    decoder = FrameDecoder()
    assert decode(decoder, list(data.draw(splits(stream)))) == (sent, None)
    decoder.finish()
    assert decoder.statistics().frames == len(sent)
    assert decoder.statistics().bytes == len(stream)
    assert decoder.statistics().buffered_bytes == 0


@given(st.data(), streams)
def test_any_mutation_gives_events_or_one_clean_error_at_any_split(data: st.DataObject, sent: list[Event]) -> None:
    stream = bytearray(PREFACE + join(map(encode, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "delete", "cut"])):
            case "flip":
                stream[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                stream[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del stream[at]
            case _:
                del stream[at:]
        if not stream:
            break
    whole = decode(FrameDecoder(), [bytes(stream)])
    decoder = FrameDecoder()
    assert decode(decoder, list(data.draw(splits(bytes(stream))))) == whole
    assert decoder.statistics().buffered_bytes <= len(stream)
    # What was understood can be said again.
    known = [event for event in whole[0] if type(event).__name__ != "Skipped"]
    assert FrameDecoder(preface=False).receive(join(map(encode, known))) == known


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_events_or_one_clean_error(stream: bytes, prefaced: bool) -> None:
    whole = decode(FrameDecoder(preface=prefaced), [stream])
    assert decode(FrameDecoder(preface=prefaced), [bytes((byte,)) for byte in stream]) == whole


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_read_and_none_is_kept(kind: type) -> None:
    frame = encode_send(1, "t", b"payload")
    decoder = FrameDecoder(preface=False)
    buffer = bytearray(frame + frame[:10])
    given_ = kind(buffer)
    assert decoder.receive(given_) == [Send(1, "t", b"payload")]
    if isinstance(given_, memoryview):
        given_.release()
        buffer.clear()  # fails while a view of it is alive
    assert decoder.receive(kind(frame[10:])) == [Send(1, "t", b"payload")]


def test_a_frame_of_the_limit_passes_and_one_byte_more_is_refused_by_its_header() -> None:
    decoder = FrameDecoder(1000, preface=False)
    assert decoder.receive(encode_envelope(bytes(1000))) == [Envelope(bytes(1000))]
    with pytest.raises(RemoteProtocolError) as raised:
        decoder.receive(encode_envelope(bytes(1001))[:6])
    assert raised.value.code is ErrorCode.FRAME_TOO_LARGE


def test_a_declared_length_is_not_allocated() -> None:
    decoder = FrameDecoder(2**31 - 1, preface=False)
    tracemalloc.start()
    try:
        decoder.receive(struct.pack(">IBB", 2**31 - 1, 8, 0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000


def test_single_bytes_cost_no_more_memory_than_the_frame() -> None:
    frame = encode_envelope(bytes(100_000))
    decoder = FrameDecoder(preface=False)
    tracemalloc.start()
    try:
        for at in range(len(frame) - 1):
            assert decoder.receive(frame[at : at + 1]) == []
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 130_000  # a bytearray grows by an eighth
    assert peak < 260_000
    assert decoder.receive(frame[-1:]) == [Envelope(bytes(100_000))]


def test_a_frame_in_many_pieces_is_looked_at_when_it_is_whole() -> None:
    class Counting(FrameDecoder):
        looks = 0

        def _read(self, data: bytes, found: list[Event]) -> int:
            self.looks += 1
            return super()._read(data, found)

    decoder = Counting(preface=False)
    frame = encode_envelope(bytes(10_000))
    found = [event for at in range(len(frame)) for event in decoder.receive(frame[at : at + 1])]
    assert found == [Envelope(bytes(10_000))]
    assert decoder.looks <= 3  # the first byte, the header, the whole: or else it is quadratic


def test_nothing_of_a_large_frame_stays_behind() -> None:
    frame = encode_envelope(bytes(1_000_000))
    decoder = FrameDecoder(preface=False)
    decoder.receive(frame[:500_000])
    decoder.receive(frame[500_000:])
    assert sys.getsizeof(decoder._partial) < 100


def test_after_a_mistake_every_call_raises_it_and_nothing_is_kept() -> None:
    decoder = FrameDecoder(preface=False)
    with pytest.raises(RemoteProtocolError) as first:
        decoder.receive(encode_ping(1) + b"\0\0\0\0\0\0" + encode_ping(2))
    assert first.value.events == (Ping(1),)
    with pytest.raises(RemoteProtocolError) as second:
        decoder.receive(encode_ping(3))
    assert (second.value.code, second.value.events) == (ErrorCode.UNKNOWN_FRAME, ())
    assert decoder.statistics().buffered_bytes == 0
    assert decoder.statistics().frames == 1


@pytest.mark.parametrize("stream", [b"", PREFACE[:3], PREFACE + encode_ping(1)[:-1], PREFACE + b"\0"])
def test_an_end_inside_of_a_frame_is_told(stream: bytes) -> None:
    decoder = FrameDecoder()
    decoder.receive(stream)
    with pytest.raises(RemoteProtocolError) as raised:
        decoder.finish()
    assert raised.value.code is ErrorCode.TRUNCATED


def test_the_limit_may_change_between_calls() -> None:
    decoder = FrameDecoder(100, preface=False)
    decoder.max_frame_bytes = 200
    assert decoder.receive(encode_envelope(bytes(150))) == [Envelope(bytes(150))]


def test_topics_are_decoded_once_and_few_are_kept() -> None:
    decoder = FrameDecoder(preface=False)
    first, second = decoder.receive(encode_send(1, "ag::w::i::1", b"") + encode_send(2, "ag::w::i::1", b""))
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert first.topic is second.topic
    for number in range(1, 1000):
        (event,) = decoder.receive(encode_send(number, f"ag::w::i::{number}", b""))
        assert isinstance(event, Send)
        assert event.topic == f"ag::w::i::{number}"
    assert len(decoder._topics) <= 64
    decoder.receive(encode_send(1, "t" * 60_000, b""))
    assert not any(len(topic) > 256 for topic in decoder._topics)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_below_one_is_named_in_the_refusal(number: int) -> None:
    body = struct.pack(">qHHI", number, 1, 1, 0) + b"t"
    with pytest.raises(RemoteProtocolError, match=f"SEND: seq is {number}; it must be at least 1"):
        FrameDecoder().receive(PREFACE + struct.pack(">IBB", len(body), 2, 0) + body)
