"""Makes a gateway of its parts: the only package that knows all of them."""

from aether_trio.gateway.gateway import Gateway, open_gateway

__all__ = ["Gateway", "open_gateway"]
