"""Of upstream messages that are no requests: which are refused without an id, and which answer somebody else."""

from __future__ import annotations

from typing import Final

from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["answers_somebody", "unanswered"]

_UNANSWERED: Final = frozenset({"send", "switch_workspace", "progress", "proxy_http_body_chunk", "tunnel_ack"})
"""The gateway says nothing to these when all is well, and else an ErrorResponse without an id."""

_ANSWERS: Final = frozenset(
    {"workflow_response", "proxy_http_response", "proxy_http_body_chunk", "tunnel_data", "tunnel_ack", "tunnel_close"}
)
"""These finish what others have begun, so they may still be said to a gateway that leaves."""


def unanswered(message: pb.UpstreamMessage) -> bool:
    """Whether a refusal of it would have no id."""
    return message.WhichOneof("payload") in _UNANSWERED


def answers_somebody(message: pb.UpstreamMessage) -> bool:
    """Whether it belongs to something that is under way."""
    return message.WhichOneof("payload") in _ANSWERS
