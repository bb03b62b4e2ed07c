"""Limits what a peer may cost on an HTTP/2 connection; names end with units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
SECONDS: Final = 1.0
MINUTES: Final = 60 * SECONDS
HOURS: Final = 60 * MINUTES


@dataclass(frozen=True, slots=True)
class Allowance:
    """A token bucket's size: `burst` events at once, then `per_second`."""

    burst: int
    per_second: float


UNLIMITED: Final = Allowance(2**62, 0.0)


@dataclass(frozen=True, slots=True)
class Allowances:
    """Limits how often an HTTP/2 peer may send frames that are costly to handle.

    grpc-core stays far below: a handful of SETTINGS, one ping per 100 ms, no PRIORITY, no empty
    DATA. `resets` are the peer's (CVE-2023-44487) and those it makes us send (CVE-2025-8671); our
    DATA frames earn `window_updates`. The last four are constants: only a broken client meets them.
    """

    # In the order of the counters in flood_budgets.py.
    settings: Allowance = Allowance(20, 1.0)
    pings: Allowance = Allowance(60, 10.0)
    resets: Allowance = Allowance(200, 50.0)
    empty_data: Allowance = Allowance(100, 10.0)
    priorities: Allowance = Allowance(100, 10.0)
    window_updates: Allowance = Allowance(2_000, 200.0)
    stray_data: Allowance = Allowance(1_000, 100.0)
    unknown_frames: Allowance = Allowance(100, 10.0)


NO_ALLOWANCES: Final = Allowances(*(UNLIMITED for _ in range(8)))
"""For our own client, which trusts its server."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """Limits of an HTTP/2 connection; the defaults suit a port open to the public."""

    stream_window_bytes: int = 65_535
    """Held for an RPC that does not read; at least 65,535, allowed before our SETTINGS."""
    connection_window_bytes: int = 1 * MIB
    max_unread_bytes: int = 8 * MIB
    """Unread on a connection, plus MESSAGE_BYTES a message; beyond it the window stays shut."""
    max_unread_answers_bytes: int = 256 * KIB
    """Of health and reflection calls on one connection: beyond it their requests wait."""
    max_unauthenticated_unread_bytes: int = 256 * KIB
    """In place of `max_unread_bytes` on a connection of whose clients none is accepted yet."""
    max_unauthenticated_header_bytes: int = 512 * KIB
    """Of requests of open calls before a client is accepted; a thousand have 300 KiB."""
    max_header_list_bytes: int = 16 * KIB
    max_header_block_bytes: int = 32 * KIB
    max_continuation_frames: int = 8
    header_table_bytes: int = 0
    """HPACK memory that we offer the peer; with 0 an idle connection keeps nothing."""
    max_concurrent_streams: int = 1_000
    max_backlog_bytes: int = 64 * KIB
    """Replies (acks, resets, window updates) for a peer that does not read. No setting."""

    handshake_timeout_s: float = 10 * SECONDS
    """For the HTTP/2 preface, its SETTINGS, and their acknowledgement."""
    idle_timeout_s: float = 15 * MINUTES
    """Without any stream; 0 is never."""
    close_timeout_s: float = 5 * SECONDS
    """For a status to follow what was pulled, and for the tasks of a broken connection to end."""
    linger_s: float = 1 * SECONDS
    """Reading on after a GOAWAY, so that the kernel does not replace it with a reset."""
    min_ping_interval_s: float = 10 * SECONDS
    max_ping_strikes: int = 2
    """As in grpc-core: the third early ping without data from us between them ends the connection.
    """

    allowances: Allowances = field(default_factory=Allowances)

    def __post_init__(self) -> None:
        if self.stream_window_bytes < 65_535 or self.connection_window_bytes < 65_535:
            raise ValueError("a stream or connection window is below 65,535 bytes, the least (RFC 9113 section 6.9.2)")
