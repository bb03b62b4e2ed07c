"""The ways a client may speak to a gateway, by the name that `--transport` takes."""

from bench.transports.base import ClientCodec, Transport
from bench.transports.framed import FramedTransport
from bench.transports.grpc import GrpcTransport
from bench.transports.websocket import WebSocketTransport

MAIN_TRANSPORT = "grpc"
"""Whose results have the names of the scenarios alone."""
ALL_TRANSPORTS = (MAIN_TRANSPORT, "framed", "websocket")
"""Side by side in a run that names none. Others are variants, which run when they are named."""

TRANSPORTS: dict[str, Transport] = {
    transport.name: transport
    for transport in (
        GrpcTransport(),
        FramedTransport(),
        FramedTransport("framed-acks", delivery_acks=True),
        WebSocketTransport(),
    )
}

__all__ = ["ALL_TRANSPORTS", "MAIN_TRANSPORT", "TRANSPORTS", "ClientCodec", "Transport"]
