"""The transport of our binary framing (docs/wire.md)."""
