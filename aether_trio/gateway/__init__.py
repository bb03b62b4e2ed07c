"""The composition of a gateway: the only place that knows all parts."""

from aether_trio.gateway.gateway import Gateway, open_gateway

__all__ = ["Gateway", "open_gateway"]
