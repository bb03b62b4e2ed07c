"""Trims h2 and hpack; the one file that uses private names of these libraries.

Their public interfaces cannot drop deques and tables that an idle connection never needs, nor open
streams without h2. tests/transport/http2/test_h2_internals.py fails when a release changes them.
"""

from __future__ import annotations

from typing import Final

import h2.config
import h2.connection
import h2.settings
import h2.stream
import hpack
import hpack.hpack
import hpack.table
import hyperframe.frame

TableState = tuple[int, int, tuple[tuple[bytes, bytes], ...]]
"""An HPACK table: its size, the bytes used of it, and its entries."""
EMPTY_TABLE: Final[TableState] = (hpack.table.HeaderTable.DEFAULT_SIZE, 0, ())

_CLOSED: Final = h2.stream.StreamClosedBy

_FRAMES: Final = (
    hyperframe.frame.HeadersFrame,
    hyperframe.frame.DataFrame,
    hyperframe.frame.SettingsFrame,
    hyperframe.frame.RstStreamFrame,
)


class _SettingValues(list[int | None]):
    """One setting's current and proposed values as a list: h2's deque has 760 bytes."""

    __slots__ = ()

    def popleft(self) -> int | None:
        return self.pop(0)


class LeanSettings(h2.settings.Settings):
    """Stores the HTTP/2 settings of one side in a tenth of h2's memory."""

    def __init__(self, *, client: bool) -> None:
        # Not calling the base class on purpose: it does nothing but fill `_settings` with deques.
        self._client = client
        defaults = ((1, 4096), (2, int(client)), (4, 65_535), (5, 16_384), (8, 0))
        self._settings = {h2.settings.SettingCodes(code): _SettingValues((value,)) for code, value in defaults}  # type: ignore[misc]

    def __setitem__(self, key: h2.settings.SettingCodes | int, value: int) -> None:
        self._settings.setdefault(key, _SettingValues((None,)))  # type: ignore[arg-type]
        super().__setitem__(key, value)


class LeanH2Connection(h2.connection.H2Connection):
    """An h2 connection with less memory; the transport counts and forgets streams."""

    MAX_CLOSED_STREAMS = 64

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.local_settings = LeanSettings(client=config.client_side)
        self.remote_settings = LeanSettings(client=not config.client_side)
        # The frames that we let through; bound methods, so each entry is an object per connection.
        table = self._frame_dispatch_table
        self._frame_dispatch_table = {kind: table[kind] for kind in _FRAMES}

    @property
    def open_inbound_streams(self) -> int:
        """Return 0: h2 asks at every HEADERS, and would count all streams."""
        return 0

    @property
    def open_outbound_streams(self) -> int:
        """Return 0: h2 asks at every HEADERS, and would count all streams."""
        return 0

    @property
    def buffered_bytes(self) -> int:
        """The bytes that were fed and belong to an incomplete frame."""
        return len(self.incoming_buffer._data)

    def adopt_reset(self, stream_id: int) -> None:
        """Remember a stream that was opened without h2 and reset by us."""
        self._closed_streams[stream_id] = _CLOSED.SEND_RST_STREAM

    def ignore_content_length(self, stream_id: int) -> None:
        """Do not compare content-length with DATA, which h2 never sees."""
        self.streams[stream_id]._expected_content_length = None

    def forget(self, stream_id: int, *, reset_by_us: bool) -> None:
        """Drop a stream that is over; `reset_by_us` says whether the server reset it."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            # A server's answers and resets do not pass through h2, so it does not know how a stream
            # ended.
            by_us = _CLOSED.SEND_RST_STREAM if reset_by_us else _CLOSED.SEND_END_STREAM
            self._closed_streams[stream_id] = stream.closed_by or by_us


class LenientDecoder(hpack.hpack.Decoder):
    """An HPACK decoder that accepts peers which do not announce a smaller table."""

    def _assert_valid_table_size(self) -> None:
        """Shrink the HPACK table to the size that our SETTINGS allow, if the peer has not.

        hpack would refuse such a peer (RFC 9113 section 4.3.1), as many are that keep no table.
        A peer that refers to an entry that is gone fails by that reference.
        """
        self.header_table_size = min(self.header_table_size, self.max_allowed_table_size)

    def table_state(self) -> TableState:
        """Return the size and the entries of the dynamic HPACK table."""
        table = self.header_table
        return table.maxsize, table._current_size, tuple(table.dynamic_entries)

    def restore(self, state: TableState) -> None:
        """Fill the empty dynamic HPACK table from a saved state."""
        table = self.header_table
        table._maxsize, table._current_size, entries = state
        table.dynamic_entries.extend(entries)
