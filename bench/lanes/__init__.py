"""The ways a client may speak to a gateway, by the name that `--lane` takes."""

from bench.lanes.base import ClientCodec, Lane
from bench.lanes.grpc import GrpcLane

LANES: dict[str, Lane] = {lane.name: lane for lane in (GrpcLane(),)}

__all__ = ["LANES", "ClientCodec", "Lane"]
