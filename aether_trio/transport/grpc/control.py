"""The control plane: h2 for what is rare and intricate (SETTINGS, header blocks and HPACK, RST_STREAM, stream states).

A thin shell that trims what h2 keeps per connection, turns its exceptions into ProtocolViolation, and answers by itself
the frames for which h2 would do no more than echo (PING, PRIORITY, GOAWAY, unknown ones). GOAWAY must not reach h2 at
all: it would then refuse every later frame, while a client that says GOAWAY still waits for its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from aether_trio.transport.grpc import frames
from aether_trio.transport.grpc.frames import ErrorCode, ProtocolViolation
from aether_trio.transport.grpc.limits import GrpcLimits

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


class _LeanH2(h2.connection.H2Connection):
    """h2 without its scan of all streams at every HEADERS: we count streams, refuse with REFUSED_STREAM, and forget."""

    MAX_CLOSED_STREAMS = 64

    @property
    def open_inbound_streams(self) -> int:
        return 0

    @property
    def open_outbound_streams(self) -> int:
        return 0

    def forget(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._closed_streams[stream_id] = stream.closed_by


class ControlPlane:
    """One connection's h2, reduced to what the lane uses."""

    __slots__ = ("_h2",)

    def __init__(self, limits: GrpcLimits, *, client_side: bool) -> None:
        self._h2 = _LeanH2(_CONFIGS[client_side])
        self._h2.decoder.max_header_list_size = limits.max_header_list_bytes
        # Never more encoder memory than none: our few headers are static entries or short.
        self._h2.encoder.header_table_size = 0

    def settings(self, limits: GrpcLimits) -> bytes:
        """Our SETTINGS frame; they count from the peer's ack on."""
        values = {
            h2.settings.SettingCodes.HEADER_TABLE_SIZE: limits.header_table_bytes,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
        }
        if self._h2.config.client_side:
            values[h2.settings.SettingCodes.ENABLE_PUSH] = 0
        else:
            values[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        self._h2.update_settings(values)
        # The preface is the data plane's business; tell h2's reader that it has passed.
        if not self._h2.config.client_side:
            self._h2.incoming_buffer.add_data(frames.PREFACE)
        return self._h2.data_to_send()

    def receive(self, frame: bytes) -> list[h2.events.Event]:
        """Feed one whole frame. Raises ProtocolViolation."""
        try:
            return self._h2.receive_data(frame)
        except h2.exceptions.DenialOfServiceError as error:
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "header_list_size", str(error)) from error
        except h2.exceptions.ProtocolError as error:
            code = ErrorCode(error.error_code)
            raise ProtocolViolation(code, code.name.lower(), str(error)) from error

    def take_output(self) -> bytes:
        return self._h2.data_to_send()

    def send_headers(self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], *, end_stream: bool) -> bytes:
        self._h2.send_headers(stream_id, list(headers), end_stream=end_stream)
        # h2 follows the peer's HEADER_TABLE_SIZE; we go on without a table.
        return self._h2.data_to_send()

    def end_stream(self, stream_id: int) -> bytes:
        self._h2.end_stream(stream_id)
        return self._h2.data_to_send()

    def reset(self, stream_id: int, code: ErrorCode) -> bytes:
        """RST_STREAM, or nothing when h2 has closed the stream already."""
        stream = self._h2.streams.get(stream_id)
        if stream is None or stream.closed:
            return b""
        self._h2.reset_stream(stream_id, code)
        return self._h2.data_to_send()

    def is_closed(self, stream_id: int) -> bool:
        stream = self._h2.streams.get(stream_id)
        return stream is None or stream.closed

    def forget(self, stream_id: int) -> None:
        self._h2.forget(stream_id)

    def ignore_content_length(self, stream_id: int) -> None:
        """h2 would compare content-length with DATA that it never sees; gRPC's own prefixes say what belongs together."""
        self._h2.streams[stream_id]._expected_content_length = None

    def next_stream_id(self) -> int:
        return self._h2.get_next_available_stream_id()

    def settings_changed(self) -> None:
        """The peer sent SETTINGS: keep the encoder without a table whatever it offers."""
        self._h2.encoder.header_table_size = 0
