"""Limits on what a gRPC peer may cost: its HTTP/2 connections and its messages."""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.transport.http2.limits import MIB, SECONDS, Http2Limits


@dataclass(frozen=True, slots=True)
class GrpcLimits(Http2Limits):
    """Limits of a gRPC connection; the defaults suit a port open to the public.

    Reference values where the reference has one (core.md section 0, sdk.md section 3).
    """

    max_receive_message_bytes: int = 10 * MIB
    max_opening_message_bytes: int | None = None
    """Of a stream whose client is not accepted, as long as its reader waits for it; None: as of any
    other. A gateway has some: who calls must be known before much of it is kept, and health checks
    and reflection need no credential.
    """
    max_assembling_bytes: int = 40 * MIB
    """Declared lengths of messages still arriving, over one connection; a stream that goes beyond
    is refused.
    """
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
