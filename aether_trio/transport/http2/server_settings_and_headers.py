"""Checks SETTINGS and header blocks of server connections, and caches results.

Clients of one kind send the same SETTINGS and a first header block that differs by its authority at
most. Their meaning follows from the bytes alone (for a block: while no dynamic table is in use), so
h2 judges each once. A connection gets its own h2, dear in time and memory, only when something
unknown comes; then h2 is told what it has missed.

Invariants: what is remembered was accepted by h2; every bound here is a number of entries and of
bytes per entry; whether a connection has its h2 yet cannot be seen from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Final

import h2.events

from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.h2_engine import H2Engine, SharedH2State
from aether_trio.transport.http2.h2_internals import EMPTY_TABLE
from aether_trio.transport.http2.hpack_cache import Key

if TYPE_CHECKING:
    from aether_trio.transport.http2.dataplane import DataPlane

SETTINGS_ACK: Final = frames.FRAME_HEADER.pack(frames.SETTINGS, frames.ACK, 0)

_PLAIN: Final = frames.END_HEADERS | frames.END_STREAM
"""Flags of HEADERS that hold a whole block and nothing besides."""
_MAX_KNOWN_SETTINGS: Final = 64
_MAX_SETTINGS_BYTES: Final = 60
_MAX_REMEMBERED_RESETS: Final = 64
_MAX_ADOPTED: Final = 32
"""Streams opened without h2, which is told of all of them at once: a millisecond or two."""
_NO_SETTINGS: Final[dict[int, int]] = {}


def as_text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Decode header names and values as latin-1, which keeps each octet."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def size_of(headers: Iterable[tuple[str, str]]) -> int:
    """Return the bytes of all names and values in a request's headers."""
    return sum(map(len, chain.from_iterable(headers)))


class ServerSettingsAndHeaders:
    """Handles SETTINGS and header blocks of one server connection, with h2 if needed."""

    __slots__ = ("_acked", "_h2", "_plane", "_resets", "_settings", "_shared", "_table")

    def __init__(self, shared: SharedH2State, plane: DataPlane) -> None:
        self._shared = shared
        self._plane = plane
        self._h2: H2Engine | None = None
        self._settings = _NO_SETTINGS
        self._acked = False
        self._table = EMPTY_TABLE
        self._resets: dict[int, None] | None = None

    # SETTINGS -------------------------------------------------------------------------------------

    def acked(self, frame: bytes) -> None:
        """Note the client's acknowledgement of our SETTINGS. Raises Http2Violation."""
        if self._h2 is not None or frame != SETTINGS_ACK:
            self._engine().receive(frame)
        self._acked = True

    def settings(self, frame: bytes) -> dict[int, int]:
        """Return the values in the client's SETTINGS by identifier. Raises Http2Violation."""
        known, body = self._shared.peer_settings, frame[frames.HEADER_BYTES :]
        stream_id = frame[5:9]
        values = known.get(body) if stream_id == b"\0\0\0\0" else None
        if values is None or self._h2 is not None:
            engine = self._engine()
            events = engine.receive_settings(frame)
            engine.take_output()
            values = {
                int(code): setting.new_value
                for event in events
                if isinstance(event, h2.events.RemoteSettingsChanged)
                for code, setting in event.changed_settings.items()
            }
            if len(body) <= _MAX_SETTINGS_BYTES:
                if len(known) >= _MAX_KNOWN_SETTINGS:
                    del known[next(iter(known))]
                known[body] = values
        self._settings = {**self._settings, **values} if self._settings else values
        return values

    # Header blocks --------------------------------------------------------------------------------

    def known_request(self, flags: int, stream_id: int, frame: bytes) -> list[tuple[str, str]] | None:
        """Return a new request's headers from the cache; None when h2 must decode them."""
        if self._h2 is not None or flags & ~_PLAIN or not flags & frames.END_HEADERS:
            return None
        if len(self._plane.streams) >= _MAX_ADOPTED:
            return None
        if not self._plane.is_idle(stream_id) or stream_id % 2 == 0 or self._table[2]:
            return None
        block = self._shared.blocks.peek((frame[frames.HEADER_BYTES :], self._table[0], self._largest_table()))
        if block is None or block.request is None:
            return None
        self._table = block.table
        return block.request

    def receive(self, kind: int, flags: int, frame: bytes) -> list[h2.events.Event]:
        """Feed h2 HEADERS or CONTINUATION and return the events. Raises Http2Violation."""
        engine = self._engine()
        key = self._key(engine, flags, frame) if kind == frames.HEADERS else None
        events = engine.receive(frame)
        block = None if key is None else self._shared.blocks.peek(key)
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                engine.ignore_content_length(event.stream_id)
                if block is not None and block.request is None:
                    block.request = as_text(event.headers)
        output = engine.take_output()
        if output:
            self._plane.out.append(output)
        return events

    def _key(self, engine: H2Engine, flags: int, frame: bytes) -> Key | None:
        """Return the cache's key of a decoded header block; None if it is not kept."""
        table = engine.decoder.header_table
        if flags & ~_PLAIN or not flags & frames.END_HEADERS or table.dynamic_entries:
            return None
        return frame[frames.HEADER_BYTES :], table.maxsize, engine.decoder.max_allowed_table_size

    # Streams --------------------------------------------------------------------------------------

    def end_of_stream(self, stream_id: int) -> None:
        """Tell h2 that the client ended a stream with a DATA frame."""
        if self._h2 is not None:
            self._h2.end_of_stream(stream_id)

    def forget(self, stream_id: int, *, reset_by_us: bool = False) -> None:
        """Remove a stream; after `reset_by_us` frames for it may still arrive."""
        if reset_by_us:
            resets = self._resets
            if resets is None:
                resets = self._resets = {}
            resets[stream_id] = None
            if len(resets) > _MAX_REMEMBERED_RESETS:
                del resets[next(iter(resets))]
        if self._h2 is not None:
            self._h2.forget(stream_id, reset_by_us=reset_by_us)

    def reset_by_us(self, stream_id: int) -> bool:
        """Return whether a stream is among the last ones that we reset."""
        return self._resets is not None and stream_id in self._resets

    # h2, when it is needed ------------------------------------------------------------------------

    def _largest_table(self) -> int:
        return self._shared.header_table_bytes if self._acked else EMPTY_TABLE[0]

    def _engine(self) -> H2Engine:
        """Return the connection's h2, made and told what it missed when first needed."""
        engine = self._h2
        if engine is None:
            engine = H2Engine(self._shared, client_side=False)
            engine.settings(self._shared)
            if self._settings:
                engine.receive(frames.settings(self._settings))
            plane = self._plane
            for stream_id in sorted(plane.streams):
                engine.adopt(stream_id, ended=plane.streams[stream_id].ended)
            engine.adopt_closed(plane.highest_stream_id, self._resets or ())
            # The acknowledgement last: it may forbid the table's size, which the peer is to change
            # with its next block.
            engine.decoder.restore(self._table)
            if self._acked:
                engine.receive(SETTINGS_ACK)
            engine.take_output()
            self._h2 = engine
        return engine
