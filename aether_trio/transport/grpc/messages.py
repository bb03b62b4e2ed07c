"""gRPC's length-prefixed messages (gRPC over HTTP/2, "Length-Prefixed-Message"): prefix, compression, assembly.

Pure. A message's length is judged when its five-byte prefix is complete, before one byte of it is kept.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from grpclib.metadata import encode_grpc_message

from aether_trio.model.errors import Status, StatusError

PREFIX: Final = struct.Struct(">BI")
"""Compressed flag, length."""
PREFIX_BYTES: Final = 5

MAX_STATUS_MESSAGE: Final = 2048
"""Characters. Clients bound header lists too (grpc-core: 8 KiB) and would lose the status with the message."""

ACCEPT_ENCODING: Final = "identity,deflate,gzip"
_WBITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def known_encoding(encoding: str) -> bool:
    return encoding == "identity" or encoding in _WBITS


def frame(message: bytes) -> bytes:
    """One uncompressed message, ready to travel in DATA frames."""
    return PREFIX.pack(0, len(message)) + message


def decompress(message: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo `encoding`; raises StatusError when the data is no such thing or grows beyond `max_bytes`."""
    wbits = _WBITS.get(encoding)
    if wbits is None:
        # A flag without grpc-encoding is the sender's bug, not a missing feature of ours.
        raise StatusError(Status.INTERNAL, "compressed flag set without a grpc-encoding")
    inflater = zlib.decompressobj(wbits)
    try:
        # One byte more than allowed tells "exactly at the limit" from "beyond it" without inflating the rest.
        plain = inflater.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise StatusError(Status.INTERNAL, f"message is not valid {encoding}: {error}") from error
    if len(plain) > max_bytes:
        raise too_large(len(plain), max_bytes)
    if not inflater.eof:
        raise StatusError(Status.INTERNAL, f"message is truncated {encoding}")
    return plain


def too_large(size_bytes: int, max_bytes: int) -> StatusError:
    return StatusError(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size_bytes} vs. {max_bytes})")


def status_message(text: str) -> bytes:
    """The value of grpc-message. Any text will do: what UTF-8 cannot say is replaced, and the rest cut off."""
    sayable = text[:MAX_STATUS_MESSAGE].encode("utf-8", "replace").decode("utf-8")
    return encode_grpc_message(sayable).encode("ascii")
