"""The caching decoder is hpack's decoder, whatever it remembers."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http2 import hpack_cache
from aether_trio.transport.http2.hpack_cache import BlockCache, CachingDecoder

names = st.sampled_from([b":path", b"te", b"x-one", b"x-two", b"user-agent"])
header_lists = st.lists(st.tuples(names, st.sampled_from([b"", b"a", b"trailers", b"/x.Y/Z"])), min_size=1, max_size=6)


@given(
    connections=st.lists(st.lists(header_lists, min_size=1, max_size=4), min_size=1, max_size=5), table=st.booleans()
)
def test_same_headers_and_same_table_as_hpack(connections: list[list[list[tuple[bytes, bytes]]]], table: bool) -> None:
    cache = BlockCache()
    for blocks in connections * 2:
        encoder, plain, cached = hpack.Encoder(), hpack.Decoder(65_536), CachingDecoder(cache, 65_536)
        if not table:
            encoder.header_table_size = 0
        for headers in blocks:
            block = encoder.encode(headers)
            assert list(cached.decode(block, raw=True)) == list(plain.decode(block, raw=True))
            assert list(cached.header_table.dynamic_entries) == list(plain.header_table.dynamic_entries)
            assert cached.header_table._current_size == plain.header_table._current_size
            assert cached.header_table.maxsize == plain.header_table.maxsize


def test_the_second_connection_hits() -> None:
    cache = BlockCache()
    for _ in range(3):
        CachingDecoder(cache, 65_536).decode(hpack.Encoder().encode([(b"a", b"b")]), raw=True)
    assert (cache.misses, cache.hits) == (1, 2)


def test_secrets_are_not_kept() -> None:
    cache = BlockCache()
    block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(b"authorization", b"secret")])
    for _ in range(2):
        CachingDecoder(cache, 65_536).decode(block, raw=True)
    assert cache.hits == 0


def test_a_changed_table_size_is_another_key() -> None:
    cache = BlockCache()
    block = hpack.Encoder().encode([(b"a", b"b")])
    CachingDecoder(cache, 65_536).decode(block, raw=True)
    strict = CachingDecoder(cache, 65_536)
    strict.max_allowed_table_size = 0
    assert list(strict.decode(block, raw=True)) == [(b"a", b"b")]
    assert not strict.header_table.dynamic_entries, "the table is larger than it may be"


def test_a_peer_that_never_says_that_its_table_shrank_is_decoded_until_it_refers_to_it() -> None:
    encoder = hpack.Encoder()
    decoder = CachingDecoder(BlockCache(), 65_536)
    decoder.max_allowed_table_size = 0  # as our SETTINGS say, which the peer has acknowledged
    fields = [(b"x-first", b"1"), (b":path", b"/x")]
    assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
    with pytest.raises(hpack.InvalidTableIndexError):
        decoder.decode(encoder.encode(fields), raw=True)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack_cache, "MAX_BLOCKS", 4)
    cache = BlockCache()
    for number in range(20):
        CachingDecoder(cache, 65_536).decode(hpack.Encoder().encode([(b"n", b"%d" % number)]), raw=True)
    assert len(cache._blocks) == 4
