"""An HPACK decoder that remembers whole header blocks for all connections together.

The first request of a connection is the dear part of opening it: about 90 µs of Huffman decoding in Python. But while a
connection's dynamic table is empty, what a block means, and what it leaves in the table, follow from its bytes and two
sizes alone; and clients of one kind send the same bytes. So results are kept by exactly that key.

Bounds: entries, and bytes per entry; the oldest goes first. A block with a never-indexed field (a secret, by RFC 7541
section 7.1.3) is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import hpack
import hpack.hpack
import hpack.struct
import hpack.table

MAX_BLOCKS: Final = 256
MAX_BLOCK_BYTES: Final = 1024

_Key = tuple[bytes, int, int]
_Table = tuple[int, int, tuple[tuple[bytes, bytes], ...]]


class BlockCache:
    """Decoded blocks by (bytes, table size, largest table size)."""

    __slots__ = ("_blocks", "hits", "misses")

    def __init__(self) -> None:
        self._blocks: dict[_Key, tuple[tuple[hpack.struct.HeaderTuple, ...], _Table]] = {}
        self.hits = 0
        self.misses = 0

    def get(self, key: _Key) -> tuple[tuple[hpack.struct.HeaderTuple, ...], _Table] | None:
        found = self._blocks.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: _Key, headers: tuple[hpack.struct.HeaderTuple, ...], table: _Table) -> None:
        if len(self._blocks) >= MAX_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[key] = headers, table


class CachingDecoder(hpack.hpack.Decoder):
    """One connection's decoder. Exactly hpack's, answered from the cache when the dynamic table is empty."""

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
            headers, (table._maxsize, table._current_size, entries) = found
            table.dynamic_entries.extend(entries)
            return list(headers)
        decoded = list(super().decode(data, raw))
        if all(header.indexable for header in decoded):
            self._cache.put(key, tuple(decoded), (table.maxsize, table._current_size, tuple(table.dynamic_entries)))
        return decoded
