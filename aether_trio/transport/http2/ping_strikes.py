"""Counts an HTTP/2 client's pings that come too early, as grpc-core does.

One strike too many ends the connection. What we send of headers or DATA clears them, for clients
then measure the path (BDP probes). Pings without any stream are welcome: the published SDK sends
them (reference/sdk.md section 3) to notice a dead server.
"""

from __future__ import annotations

from typing import Final

from aether_trio.transport.http2.frames import Http2ErrorCode, Http2Violation

_NEVER: Final = float("-inf")


class PingStrikes:
    """Counts the pings of one HTTP/2 connection that come too early."""

    __slots__ = ("_data_seen", "_last", "_strikes")

    def __init__(self) -> None:
        self._strikes = 0
        self._last = _NEVER
        self._data_seen = 0

    def forgive(self) -> None:
        """Reset the count of early pings: headers were sent to the client."""
        self._strikes = 0
        self._last = _NEVER

    def ping(self, now: float, data_frames_sent: int, min_interval_s: float, max_strikes: int) -> None:
        """Judge a client's ping at `now`; raise Http2Violation if too many were early."""
        if data_frames_sent != self._data_seen:
            self._data_seen = data_frames_sent
            self.forgive()
        if now < self._last + min_interval_s:
            self._strikes += 1
            if self._strikes > max_strikes:
                raise Http2Violation(Http2ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last = now
