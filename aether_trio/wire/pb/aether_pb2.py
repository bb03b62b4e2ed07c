"""Message classes of proto/aether/v1/aether.proto; the .pyi beside this file says what is here."""

from aether_trio.wire.pb import exports

globals().update(exports("aether/v1/aether.proto", __name__))
