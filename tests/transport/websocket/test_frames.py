"""The reader of WebSocket frames agrees with wsproto, however bytes are split."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.websocket.frames import (
    CloseCode,
    CloseFrame,
    DataFrame,
    Event,
    Fragment,
    FrameError,
    FrameReader,
    close_frame,
    pong_frame,
)
from fuzz.websocket import wsproto_says

LIMIT = 70_000


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    """A client's frame."""
    first = bytes((fin << 7 | opcode,))
    size = len(payload)
    if size < 126:
        head = first + bytes((0x80 | size,))
    elif size < 1 << 16:
        head = first + struct.pack(">BH", 0xFE, size)
    else:
        head = first + struct.pack(">BQ", 0xFF, size)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def read(parts: Iterable[bytes], limit: int = LIMIT) -> tuple[list[Event], CloseCode | None]:
    """All events, and the code of the mistake that ended them."""
    reader = FrameReader(limit)
    events: list[Event] = []
    for part in parts:
        reader.feed(part)
        try:
            while (event := reader.next()) is not None:
                events.append(event)
        except FrameError as error:
            assert reader.held_bytes == reader.unread_bytes == 0
            with pytest.raises(FrameError):
                reader.next()
            return events, error.code
        assert reader.held_bytes <= limit + 1
        assert reader.unread_bytes <= 131 or any(isinstance(event, CloseFrame) for event in events)
    return events, None


payloads = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536, b"x" * LIMIT])
)
good_frames = st.builds(
    frame,
    st.sampled_from([0, 1, 2, 2, 9, 10]),
    payloads,
    fin=st.booleans(),
    mask=st.sampled_from([b"\0\0\0\0", b"\x01\x82\x43\xff"]),
)
closings = st.builds(
    lambda code, reason: frame(8, struct.pack(">H", code) + reason),
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
    whole = read([stream])
    assert read(parts) == whole
    assert read(stream[index : index + 1] for index in range(min(len(stream), 400))) == read([stream[:400]])


@given(stream=streams)
def test_it_agrees_with_wsproto(stream: bytes) -> None:
    events, code = read([stream], 1 << 30)
    theirs, their_code = wsproto_says(stream)
    ours = [event for event in events if not isinstance(event, Fragment)]
    if their_code == CloseCode.INVALID_TEXT and code is not CloseCode.INVALID_TEXT:
        # Text is looked at when its message is whole, by the link.
        assert ours[: len(theirs)] == theirs
    elif code is not None and their_code is None:
        assert ours == theirs  # what is wrong from its first byte on is refused there
    elif not any(isinstance(event, CloseFrame) and event.code == 1014 for event in ours):
        assert (ours, code) == (theirs, their_code)


@pytest.mark.parametrize("size", [LIMIT + 1, 2**40, 2**63 - 1])
def test_what_is_announced_too_long_is_refused_by_its_header(size: int) -> None:
    assert read([b"\x82\xff" + struct.pack(">Q", size)]) == ([], CloseCode.TOO_BIG)


def test_fragments_count_together() -> None:
    parts = [frame(2, b"x" * 40_000, fin=False), frame(0, b"", fin=False), frame(0, b"x" * 30_000)]
    assert read(parts)[0][-1] == DataFrame(text=False, data=b"x" * 70_000)
    assert read([*parts[:2], b"\x80\xfe" + struct.pack(">H", 30_001)]) == ([Fragment(), Fragment()], CloseCode.TOO_BIG)


def test_a_limit_that_grows_counts_for_the_next_frame() -> None:
    reader = FrameReader(10)
    reader.feed(frame(2, b"x" * 10))
    assert reader.next() == DataFrame(text=False, data=b"x" * 10)
    reader.max_message_bytes = 20
    reader.feed(frame(2, b"x" * 20))
    assert reader.next() == DataFrame(text=False, data=b"x" * 20)


@pytest.mark.parametrize("length", [b"\xfe\x00\x7d", b"\xff\0\0\0\0\0\0\xff\xff", b"\xff\x80\0\0\0\0\0\0\0"])
def test_a_length_in_more_bytes_than_it_needs(length: bytes) -> None:
    assert read([b"\x82" + length + bytes(200)]) == ([], CloseCode.PROTOCOL_ERROR)


def test_a_message_that_is_given_up_leaves_nothing() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(2, b"x" * 60_000)[:50_000])
    assert reader.next() is None
    assert reader.held_bytes > 49_000
    reader.give_up()
    assert reader.held_bytes == reader.unread_bytes == 0


def test_what_a_server_says() -> None:
    assert close_frame(None) == b"\x88\x00"
    assert close_frame(1000, "bye") == b"\x88\x05\x03\xe8bye"
    assert pong_frame(b"p" * 125) == b"\x8a\x7d" + b"p" * 125
