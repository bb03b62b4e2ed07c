"""Blocks made by hand mean to any HPACK decoder what they should."""

from __future__ import annotations

import struct

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http2 import frames, response_headers
from tests.transport.grpc.harness import RawClient, frame, message, probe_server, serving, settings

TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=400)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=300)


def decoded(block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in hpack.Decoder(10**6).decode(block)]


@given(fields=st.lists(st.tuples(NAMES, TEXTS), max_size=5))
def test_metadata_of_any_length_decodes_to_itself(fields: list[tuple[str, str]]) -> None:
    assert decoded(response_headers.metadata(fields)) == fields


@given(value=st.integers(0, 2**32), bits=st.integers(1, 8))
def test_integers_are_hpacks(value: int, bits: int) -> None:
    assert response_headers.integer(value, bits) == bytes(hpack.hpack.encode_integer(value, bits))


def test_a_response_says_what_grpc_wants() -> None:
    assert decoded(response_headers.RESPONSE) == [
        (":status", "200"),
        ("content-type", "application/grpc+proto"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
    ]


@pytest.mark.parametrize("status", range(17))
def test_every_status_has_its_trailers(status: int) -> None:
    assert decoded(response_headers.trailers(status, None)) == [("grpc-status", str(status))]
    assert decoded(response_headers.trailers(status, "wörds")) == [
        ("grpc-status", str(status)),
        ("grpc-message", "w%C3%B6rds"),
    ]


@pytest.mark.parametrize("http_status", [200, 400, 405, 415])
def test_a_refusal_is_a_whole_response(http_status: int) -> None:
    fields = dict(decoded(response_headers.refusal(http_status, 12, "no")))
    assert (fields[":status"], fields["grpc-status"], fields["grpc-message"]) == (str(http_status), "12", "no")


@given(size=st.integers(1, 100), frame_bytes=st.integers(1, 40), end=st.booleans())
def test_long_blocks_continue_in_frames_of_the_peers_size(size: int, frame_bytes: int, end: bool) -> None:
    block = bytes(range(size))
    rest, seen = response_headers.block_frames(7, block, frame_bytes, end_stream=end), []
    while rest:
        word, flags, stream_id = struct.unpack_from(">IBI", rest)
        stop = 9 + (word >> 8)
        seen.append((word & 0xFF, flags, stream_id, rest[9:stop]))
        rest = rest[stop:]
    assert b"".join(body for *_, body in seen) == block
    assert all(len(body) <= frame_bytes for *_, body in seen)
    assert [kind for kind, *_ in seen] == [frames.HEADERS] + [frames.CONTINUATION] * (len(seen) - 1)
    assert [bool(flags & frames.END_HEADERS) for _, flags, *_ in seen] == [False] * (len(seen) - 1) + [True]
    assert [bool(flags & frames.END_STREAM) for _, flags, *_ in seen] == [end] + [False] * (len(seen) - 1)
    assert {stream_id for _, _, stream_id, _ in seen} == {7}


@pytest.mark.parametrize("offered", [0, 100, 65_536])
async def test_a_peer_with_a_table_of_any_size_hears_first_that_none_is_used(offered: int) -> None:
    server, _ = probe_server()
    async with serving(server) as port:
        client = await RawClient.connect(port, settings(table=offered))
        client._decoder.max_allowed_table_size = offered  # complains unless told that the table shrinks
        await client.send(client.request(1), frame(frames.DATA, frames.END_STREAM, 1, message(b"x")))
        assert (await client.trailers(1))["grpc-status"] == "0"
        # Said once; a later offer below it is not possible.
        await client.send(settings(table=0), client.request(3, end=True))
        client._decoder.max_allowed_table_size = 0
        assert (await client.trailers(3))["grpc-status"] == "0"
        blocks = [f.body for f in client.seen if f.kind == frames.HEADERS]
        assert [block.startswith(response_headers.NO_TABLE) for block in blocks] == [True] + [False] * (len(blocks) - 1)
        await client.stream.aclose()
