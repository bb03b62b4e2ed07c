"""Caches decoded HPACK header blocks for all connections together.

Decoding a connection's first request takes 90 µs. While its dynamic table is empty, a block's
meaning and effect follow from its bytes and two sizes, and clients of one kind send the same bytes.
So results are kept by that key, with the request that h2 made of the block, if it was sound
(server_settings_and_headers.py). Bounds: entries, and bytes per entry; the oldest goes first. A
block with a never-indexed field (a secret, RFC 7541 section 7.1.3) is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import hpack.struct

from aether_trio.transport.http2.h2_internals import LenientDecoder, TableState

MAX_BLOCKS: Final = 256
MAX_BLOCK_BYTES: Final = 1024

Key = tuple[bytes, int, int]
"""A block, the table's size, and the largest size that it may have."""


class KnownBlock:
    """A decoded header block, and the HPACK table that it leaves."""

    __slots__ = ("headers", "request", "table")

    def __init__(self, headers: tuple[hpack.struct.HeaderTuple, ...], table: TableState) -> None:
        self.headers = headers
        self.table = table
        self.request: list[tuple[str, str]] | None = None


class BlockCache:
    """A bounded cache of decoded header blocks, shared by all connections."""

    __slots__ = ("_blocks", "hits", "misses")

    def __init__(self) -> None:
        self._blocks: dict[Key, KnownBlock] = {}
        self.hits = 0
        self.misses = 0

    def peek(self, key: Key) -> KnownBlock | None:
        """Return a cached header block without counting a hit or a miss."""
        return self._blocks.get(key)

    def get(self, key: Key) -> KnownBlock | None:
        found = self._blocks.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: Key, headers: tuple[hpack.struct.HeaderTuple, ...], table: TableState) -> None:
        if len(self._blocks) >= MAX_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[key] = KnownBlock(headers, table)


class CachingDecoder(LenientDecoder):
    """One connection's HPACK decoder, which asks the shared cache first."""

    def __init__(self, cache: BlockCache, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self._cache = cache

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.struct.HeaderTuple]:
        table = self.header_table
        if not raw or table.dynamic_entries or len(data) > MAX_BLOCK_BYTES:
            return super().decode(data, raw)
        key = (bytes(data), table.maxsize, self.max_allowed_table_size)
        found = self._cache.get(key)
        if found is not None:
            self.restore(found.table)
            return list(found.headers)
        decoded = list(super().decode(data, raw))
        if all(header.indexable for header in decoded):
            self._cache.put(key, tuple(decoded), self.table_state())
        return decoded
