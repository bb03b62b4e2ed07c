"""Drives the h2 library for SETTINGS, header blocks (HPACK) and stream states.

Trims what h2 keeps per connection and turns its exceptions into Http2Violation. PING, PRIORITY,
unknown frames and GOAWAY do not come here: after a GOAWAY h2 would refuse every frame, while the
client still waits for answers. Of a server's connections only those that need it have one
(server_settings_and_headers.py), for what arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream

from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode, Http2Violation
from aether_trio.transport.http2.h2_internals import LeanH2Connection
from aether_trio.transport.http2.hpack_cache import BlockCache, CachingDecoder
from aether_trio.transport.http2.limits import Http2Limits

Headers = Sequence[tuple[bytes, bytes]]

_CONFIGS: Final = {
    client_side: h2.config.H2Configuration(
        client_side=client_side,
        # Bytes: a header that is no UTF-8 must not raise from inside h2.
        header_encoding=None,
        # Outbound headers are ours; inbound ones are not.
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    for client_side in (False, True)
}


_LEAST_REQUEST: Final = b"\x83\x86\x84\x01\x01x"
"""`:method POST, :scheme http, :path /, :authority x`, without an HPACK dynamic table."""
_SETTING_BYTES: Final = 6
_KNOWN_SETTINGS: Final = frozenset(code.to_bytes(2, "big") for code in h2.settings.SettingCodes)


class SharedH2State:
    """SETTINGS and decoded header blocks that a server's connections share."""

    __slots__ = ("blocks", "header_table_bytes", "max_header_list_bytes", "peer_settings", "settings", "settings_frame")

    def __init__(self, limits: Http2Limits, *, client_side: bool) -> None:
        codes = h2.settings.SettingCodes
        self.settings: dict[h2.settings.SettingCodes | int, int] = {
            codes.HEADER_TABLE_SIZE: limits.header_table_bytes,
            codes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            codes.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
        }
        if client_side:
            self.settings[codes.ENABLE_PUSH] = 0
        else:
            self.settings[codes.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        self.settings_frame = frames.settings({int(code): value for code, value in self.settings.items()})
        self.max_header_list_bytes = limits.max_header_list_bytes
        self.header_table_bytes = limits.header_table_bytes
        self.blocks = BlockCache()
        self.peer_settings: dict[bytes, dict[int, int]] = {}
        """Values in SETTINGS bodies that h2 found valid (server_settings_and_headers.py)."""


class H2Engine:
    """One connection's h2 state machine, reduced to what the transport uses."""

    __slots__ = ("_h2", "decoder")

    def __init__(self, shared: SharedH2State, *, client_side: bool) -> None:
        self._h2 = LeanH2Connection(_CONFIGS[client_side])
        self.decoder = self._h2.decoder = CachingDecoder(shared.blocks, shared.max_header_list_bytes)
        # No table for what we send: our few headers are static entries or short. An empty deque is
        # 760 bytes, and with a size of 0 hpack only ever clears it.
        self._h2.encoder.header_table_size = 0
        self._h2.encoder.header_table.dynamic_entries = []  # type: ignore[assignment]

    def settings(self, shared: SharedH2State) -> bytes:
        """Return our SETTINGS frame, whose values count once the peer acknowledges it."""
        # What h2's update_settings does, without building the same frame for every connection.
        self._h2.local_settings.update(shared.settings)
        if not self._h2.config.client_side:
            # The preface is the data plane's business; tell h2's reader that it has passed.
            self._h2.incoming_buffer.add_data(frames.PREFACE)
        return shared.settings_frame

    def receive_settings(self, frame: bytes) -> list[h2.events.Event]:
        """Feed h2 only known SETTINGS, as it keeps all it sees. Raises Http2Violation."""
        body = frame[frames.HEADER_BYTES :]
        if len(body) % _SETTING_BYTES == 0:
            entries = [body[at : at + _SETTING_BYTES] for at in range(0, len(body), _SETTING_BYTES)]
            known = [entry for entry in entries if entry[:2] in _KNOWN_SETTINGS]
            if len(known) != len(entries):
                frame = frames.with_body(frame, b"".join(known))
        return self.receive(frame)

    def receive(self, frame: bytes) -> list[h2.events.Event]:
        """Feed h2 one whole frame and return its events. Raises Http2Violation."""
        try:
            return self._h2.receive_data(frame)
        except h2.exceptions.DenialOfServiceError as error:
            raise Http2Violation(Http2ErrorCode.ENHANCE_YOUR_CALM, "header_list_size", str(error)) from error
        except h2.exceptions.ProtocolError as error:
            code = Http2ErrorCode(error.error_code)
            raise Http2Violation(code, code.name.lower(), str(error)) from error

    def take_output(self) -> bytes:
        return self._h2.data_to_send()

    def send_headers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], *, end_stream: bool) -> bytes:
        self._h2.send_headers(stream_id, list(headers), end_stream=end_stream)
        # h2 follows the peer's HEADER_TABLE_SIZE; we go on without a table.
        return self._h2.data_to_send()

    def end_stream(self, stream_id: int) -> bytes:
        self._h2.end_stream(stream_id)
        return self._h2.data_to_send()

    def reset(self, stream_id: int, code: Http2ErrorCode) -> bytes:
        """Return an RST_STREAM frame; b"" when h2 has closed the stream already."""
        stream = self._h2.streams.get(stream_id)
        if stream is None or stream.closed:
            return b""
        try:
            self._h2.reset_stream(stream_id, code)
        except h2.exceptions.ProtocolError:
            return b""  # h2 has given the connection up, and so shall we
        return self._h2.data_to_send()

    def end_of_stream(self, stream_id: int) -> None:
        """Tell h2 that the peer ended a stream with a DATA frame."""
        self.receive(frames.empty_end_of_stream(stream_id))

    def adopt(self, stream_id: int, *, ended: bool) -> None:
        """Tell h2 of a stream that was opened without it, by a minimal request."""
        flags = frames.END_HEADERS | (frames.END_STREAM if ended else 0)
        self.receive(
            frames.FRAME_HEADER.pack(len(_LEAST_REQUEST) << 8 | frames.HEADERS, flags, stream_id) + _LEAST_REQUEST
        )

    def adopt_closed(self, highest_stream_id: int, reset_by_us: Iterable[int]) -> None:
        """Tell h2 of the streams that were opened and closed without it."""
        self._h2.highest_inbound_stream_id = highest_stream_id
        for stream_id in reset_by_us:
            self._h2.adopt_reset(stream_id)

    def forget(self, stream_id: int, *, reset_by_us: bool = False) -> None:
        self._h2.forget(stream_id, reset_by_us=reset_by_us)

    def ignore_content_length(self, stream_id: int) -> None:
        """Stop h2 from comparing content-length with DATA, which it never sees."""
        self._h2.ignore_content_length(stream_id)

    @property
    def buffered_bytes(self) -> int:
        """The bytes that h2 holds of an incomplete frame."""
        return self._h2.buffered_bytes

    def next_stream_id(self) -> int:
        return self._h2.get_next_available_stream_id()

    def settings_changed(self) -> None:
        """Keep the HPACK encoder without a table, whatever size the peer's SETTINGS offer.

        hpack forgets to announce a size that is set to the same value again before the next
        block, as for a peer that offers 0, whose decoder then complains; hence the flag.
        """
        encoder = self._h2.encoder
        encoder.header_table_size = 0
        encoder.header_table.resized = bool(encoder.table_size_changes)
