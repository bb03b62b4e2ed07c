"""The ways a user may be connected, by the name that `--transport` takes.

Needs gevent with everything patched.
"""

from __future__ import annotations

from collections.abc import Callable

from loadtests.links.base import Ended, Link, Opening

__all__ = ["Ended", "Link", "Opening", "opener"]


def opener(transport: str) -> Callable[[Opening], Link]:
    """What connects one user; imports only what that transport needs.

    A link is made unconnected: call `open`.
    """
    if transport == "framed":
        from loadtests.links.framed import FramedLink

        return FramedLink
    if transport == "websocket":
        from loadtests.links.websocket import WebSocketLink

        return WebSocketLink
    if transport == "grpc-raw":
        from loadtests.links.grpc_raw import RawGrpcLink

        return RawGrpcLink
    from loadtests.links.grpc import GrpcLink

    return GrpcLink
