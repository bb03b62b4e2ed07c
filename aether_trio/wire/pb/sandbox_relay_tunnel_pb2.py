"""Message classes of proto/aether/v1/sandbox_relay_tunnel.proto; the .pyi beside this file says what is here."""

from aether_trio.wire.pb import exports

globals().update(exports("aether/v1/sandbox_relay_tunnel.proto", __name__))
