"""The ways a client may speak to a gateway, by the name that `--lane` takes."""

from bench.lanes.base import ClientCodec, Lane
from bench.lanes.framed import FramedLane
from bench.lanes.grpc import GrpcLane
from bench.lanes.websocket import WebSocketLane

MAIN_LANE = "grpc"
"""Whose results have the names of the scenarios alone."""
ALL_LANES = (MAIN_LANE, "framed", "websocket")
"""Side by side in a run that names none. Others are variants, which run when they are named."""

LANES: dict[str, Lane] = {
    lane.name: lane
    for lane in (GrpcLane(), FramedLane(), FramedLane("framed-acks", delivery_acks=True), WebSocketLane())
}

__all__ = ["ALL_LANES", "LANES", "MAIN_LANE", "ClientCodec", "Lane"]
