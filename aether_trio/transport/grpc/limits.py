"""Limits on what a gRPC peer may cost: its HTTP/2 connections and its messages."""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.transport.http2.limits import MIB, SECONDS, Http2Limits


@dataclass(frozen=True, slots=True)
class GrpcLimits(Http2Limits):
    """Limits of a gRPC connection; the defaults suit a port open to the public."""

    max_receive_message_bytes: int = 10 * MIB
    max_opening_message_bytes: int | None = None
    """For a waiting reader whose client is not accepted yet; None: no smaller limit."""
    max_assembling_bytes: int = 40 * MIB
    """Declared lengths of unfinished messages on one connection; beyond it streams fail."""
    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float = 5 * SECONDS

    @property
    def opening_bytes(self) -> int:
        """The longest message allowed from a client whose session is not accepted yet."""
        opening = self.max_opening_message_bytes
        return self.max_receive_message_bytes if opening is None else min(opening, self.max_receive_message_bytes)

    def __post_init__(self) -> None:
        Http2Limits.__post_init__(self)
        if self.max_assembling_bytes < self.max_receive_message_bytes:
            raise ValueError(
                "max_assembling_bytes is less than max_receive_message_bytes; raise it to hold one message"
            )
