"""Bytes and messages: the protobuf classes of aether.v1, and the encoders and codecs on top of
them.

Nothing in here does I/O or knows about sockets, tasks or storage.
"""
