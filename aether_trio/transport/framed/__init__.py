"""The framed transport: the gateway's side of its binary protocol (docs/wire.md)."""
