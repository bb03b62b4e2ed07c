"""Limits of the gateway's framed (binary protocol) transport, with defaults."""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.wire.framing.constants import DEFAULT_MAX_FRAME_BYTES, DEFAULT_PUBLISH_WINDOW


@dataclass(frozen=True, slots=True)
class FramedLimits:
    """Limits of one framed (binary protocol) connection, some announced in HELLO."""

    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    payload_bytes: int = 1024 * 1024
    publish_window: int = DEFAULT_PUBLISH_WINDOW
    dedup_s: int = 0
    handshake_timeout_s: float = 30.0
    """From the preface to the client's first ENVELOPE."""
    control_frames_per_s: float = 100.0
    control_frames_burst: float = 1000.0
    close_timeout_s: float = 5.0
    """For the peer to read what was sent before the end."""
    linger_s: float = 2.0
    """For the peer to read why the end came, and to end its side."""
