"""Encode and decode the messages of aether.v1: protobuf and codecs, no I/O."""
