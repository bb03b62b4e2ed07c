"""The reader of WebSocket frames agrees with wsproto, however bytes are split."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.websocket.frames import CloseCode, DataFrame, Fragment, FrameReader, close_frame, pong_frame
from fuzz.websocket import check_against_wsproto, frame, read

LIMIT = 70_000


payloads = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536, b"x" * LIMIT])
)
good_frames = st.builds(
    frame,
    st.sampled_from([fin | opcode for fin in (0, 0x80) for opcode in (0, 1, 2, 2, 9, 10)]),
    payloads,
    st.sampled_from([b"\0\0\0\0", b"\x01\x82\x43\xff"]),
)
closings = st.builds(
    lambda code, reason: frame(0x88, struct.pack(">H", code) + reason),
    st.one_of(st.integers(0, 65_535), st.sampled_from([1000, 1001, 1005, 1015, 3000, 4999, 5000])),
    st.binary(max_size=20),
)
streams = st.lists(st.one_of(good_frames, good_frames, closings, st.binary(max_size=12)), max_size=8).map(b"".join)


@given(stream=streams, cuts=st.lists(st.integers(1, 5000), max_size=20))
def test_however_a_stream_is_split_it_means_the_same(stream: bytes, cuts: list[int]) -> None:
    parts, at = [], 0
    for cut in cuts:
        parts.append(stream[at : at + cut])
        at += cut
    parts.append(stream[at:])
    assert read(parts, LIMIT) == read([stream], LIMIT)
    assert read((bytes((byte,)) for byte in stream[:400]), LIMIT) == read([stream[:400]], LIMIT)


@given(stream=streams)
def test_it_agrees_with_wsproto(stream: bytes) -> None:
    check_against_wsproto(stream)


def test_a_reason_that_is_no_text() -> None:
    assert read([frame(0x88, b"\x03\xe8\xff")], LIMIT) == ([], CloseCode.INVALID_TEXT)


@pytest.mark.parametrize("size", [LIMIT + 1, 2**40, 2**63 - 1])
def test_what_is_announced_too_long_is_refused_by_its_header(size: int) -> None:
    assert read([b"\x82\xff" + struct.pack(">Q", size)], LIMIT) == ([], CloseCode.TOO_BIG)


def test_fragments_count_together() -> None:
    parts = [frame(0x02, b"x" * 40_000), frame(0x00), frame(0x80, b"x" * 30_000)]
    assert read(parts, LIMIT)[0][-1] == DataFrame(text=False, data=b"x" * 70_000)
    too_long = b"\x80\xfe" + struct.pack(">H", 30_001)
    assert read([*parts[:2], too_long], LIMIT) == ([Fragment(), Fragment()], CloseCode.TOO_BIG)


def test_a_limit_that_grows_counts_for_the_next_frame() -> None:
    reader = FrameReader(10)
    reader.feed(frame(0x82, b"x" * 10))
    assert reader.next() == DataFrame(text=False, data=b"x" * 10)
    reader.max_message_bytes = 20
    reader.feed(frame(0x82, b"x" * 20))
    assert reader.next() == DataFrame(text=False, data=b"x" * 20)


@pytest.mark.parametrize("length", [b"\xfe\x00\x7d", b"\xff\0\0\0\0\0\0\xff\xff", b"\xff\x80\0\0\0\0\0\0\0"])
def test_a_length_in_more_bytes_than_it_needs(length: bytes) -> None:
    assert read([b"\x82" + length + bytes(200)], LIMIT) == ([], CloseCode.PROTOCOL_ERROR)


def test_a_message_that_is_given_up_leaves_nothing() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(0x82, b"x" * 60_000)[:50_000])
    assert reader.next() is None
    assert reader.held_bytes > 49_000
    reader.give_up()
    assert reader.held_bytes == reader.unread_bytes == 0


def test_what_a_server_says() -> None:
    assert close_frame(None) == b"\x88\x00"
    assert close_frame(1000, "bye") == b"\x88\x05\x03\xe8bye"
    assert pong_frame(b"p" * 125) == b"\x8a\x7d" + b"p" * 125
