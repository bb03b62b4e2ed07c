"""Encodes and checks gRPC's length-prefixed messages, without I/O."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from grpclib.metadata import encode_grpc_message

from aether_trio.model.errors import Status, StatusError

PREFIX: Final = struct.Struct(">BI")
"""Compressed flag, length."""
PREFIX_BYTES: Final = 5

SLICE_BYTES: Final = 256 * 1024
"""Decompressed at once: a few tenths of a millisecond."""

MAX_STATUS_MESSAGE: Final = 2048
"""Characters; beyond the client's limit of headers (8 KiB) the status would be lost."""

ACCEPT_ENCODING: Final = "identity,deflate,gzip"
_WBITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def known_encoding(encoding: str) -> bool:
    return encoding == "identity" or encoding in _WBITS


def with_prefixes(batch: list[bytes]) -> list[bytes]:
    """Put gRPC's 5-byte prefix before each uncompressed message."""
    pack = PREFIX.pack
    pieces: list[bytes] = []
    for message in batch:
        pieces.append(pack(0, len(message)))
        pieces.append(message)
    return pieces


class CompressedMessage(bytes):
    """A received gRPC message that is still compressed."""

    __slots__ = ()


def compressed_message(flag: int, message: bytes, encoding: str) -> CompressedMessage:
    """Wrap a message whose flag says compressed. Raises StatusError for a wrong flag."""
    if flag != 1:
        raise StatusError(Status.INTERNAL, f"a gRPC message has unknown flags: {flag:#x}")
    if encoding not in _WBITS:
        # A flag without grpc-encoding is the sender's bug, not a missing feature of ours.
        raise StatusError(Status.INTERNAL, "a message is flagged as compressed, but the request has no grpc-encoding")
    return CompressedMessage(message)


class Decompression:
    """Decompresses one gRPC message in slices of at most SLICE_BYTES, in and out."""

    __slots__ = ("_at", "_encoding", "_largest", "_parts", "_rest", "_source", "_zlib", "size")

    def __init__(self, message: bytes, encoding: str, max_bytes: int) -> None:
        self._source = memoryview(message)
        self._encoding = encoding
        self._largest = max_bytes
        self._zlib = zlib.decompressobj(_WBITS[encoding])
        self._parts: list[bytes] = []
        self._rest = b""
        self._at = 0
        self.size = 0
        """Bytes so far."""

    def step(self) -> bool:
        """Decompress one slice; return True after the last. Raises StatusError."""
        decompressor = self._zlib
        piece: bytes | memoryview = self._rest
        if not piece:
            piece = self._source[self._at : self._at + SLICE_BYTES]
            self._at += len(piece)
        try:
            plain = decompressor.decompress(piece, SLICE_BYTES)
        except zlib.error as error:
            raise StatusError(
                Status.INTERNAL, f"cannot decompress a message: it is not valid {self._encoding}: {error}"
            ) from error
        self._rest = decompressor.unconsumed_tail
        self.size += len(plain)
        if self.size > self._largest:
            raise too_large(self.size, self._largest)
        self._parts.append(plain)
        if decompressor.eof:
            return True
        # A full slice may have left some in zlib, which an empty piece gets out.
        if not self._rest and self._at == len(self._source) and len(plain) < SLICE_BYTES:
            raise StatusError(Status.INTERNAL, f"cannot decompress a message: its {self._encoding} data is truncated")
        return False

    def message(self) -> bytes:
        """Return the complete decompressed message."""
        return b"".join(self._parts)


def too_large(size_bytes: int, max_bytes: int) -> StatusError:
    return StatusError(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size_bytes} vs. {max_bytes})")


def too_large_to_open(size_bytes: int, max_bytes: int) -> StatusError:
    """Return the error for a too long message of a client that is not accepted yet."""
    text = f"a message of {size_bytes} bytes; at most {max_bytes} are allowed from a client that is not accepted"
    return StatusError(Status.INVALID_ARGUMENT, text)


def status_message(text: str) -> bytes:
    """Encode any text as the value of the grpc-message trailer; cut it if too long."""
    sayable = text[:MAX_STATUS_MESSAGE].encode("utf-8", "replace").decode("utf-8")
    return encode_grpc_message(sayable).encode("ascii")
