"""Header blocks made by hand: any HPACK decoder reads them as they were meant."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http2 import frames, header_blocks
from tests.transport.grpc.harness import Port, RawClient, frame, message, parse_frames, settings


@given(value=st.integers(0, 2**32), bits=st.integers(1, 8))
def test_integers_are_hpacks(value: int, bits: int) -> None:
    assert header_blocks.integer(value, bits) == bytes(hpack.hpack.encode_integer(value, bits))


@given(size=st.integers(1, 100), frame_bytes=st.integers(1, 40), end=st.booleans())
def test_long_blocks_continue_in_frames_of_the_peers_size(size: int, frame_bytes: int, end: bool) -> None:
    block = bytes(range(size))
    seen = parse_frames(header_blocks.block_frames(7, block, frame_bytes, end_stream=end))
    more = len(seen) - 1
    assert b"".join(one.body for one in seen) == block
    assert all(len(one.body) <= frame_bytes for one in seen)
    assert [one.kind for one in seen] == [frames.HEADERS] + [frames.CONTINUATION] * more
    assert [bool(one.flags & frames.END_HEADERS) for one in seen] == [False] * more + [True]
    assert [bool(one.flags & frames.END_STREAM) for one in seen] == [end] + [False] * more
    assert {one.stream_id for one in seen} == {7}


@pytest.mark.parametrize("offered", [0, 100, 65_536])
async def test_a_peer_with_a_table_of_any_size_hears_first_that_none_is_used(port: Port, offered: int) -> None:
    client = await RawClient.connect(port, settings(table=offered))
    # Complains unless told that the table shrinks.
    client._decoder.max_allowed_table_size = offered
    await client.send(client.request(1), frame(frames.DATA, frames.END_STREAM, 1, message(b"x")))
    assert (await client.trailers(1))["grpc-status"] == "0"
    # Said once; a later offer below it is not possible.
    await client.send(settings(table=0), client.request(3, end=True))
    client._decoder.max_allowed_table_size = 0
    assert (await client.trailers(3))["grpc-status"] == "0"
    blocks = [f.body for f in client.seen if f.kind == frames.HEADERS]
    assert [block.startswith(header_blocks.NO_TABLE) for block in blocks] == [True] + [False] * (len(blocks) - 1)
    await client.stream.aclose()
