"""Encode and decode the messages of aether.v1: protobuf classes and codecs.

Nothing in here does I/O or knows about sockets, tasks or storage.
"""
