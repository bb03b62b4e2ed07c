"""Cuts HTTP bodies for the gateway's proxy into pieces, and joins them again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aether_trio.client.errors import PayloadTooLarge, UnexpectedAnswer
from aether_trio.wire.pb import aether_pb2 as pb

PIECE_BYTES: Final = 256 * 1024
"""The longest piece, and the longest body inside of its request or response."""


def pieces(request_id: str, body: bytes, *, is_request: bool) -> Iterator[pb.ProxyHttpBodyChunk]:
    """Cut an HTTP body into pieces, and mark the last of them."""
    count = max(1, -(-len(body) // PIECE_BYTES))
    for seq in range(count):
        part = body[seq * PIECE_BYTES : (seq + 1) * PIECE_BYTES]
        yield pb.ProxyHttpBodyChunk(
            request_id=request_id, is_request=is_request, seq=seq, data=part, fin=seq == count - 1
        )


class BodyAssembly:
    """Joins the pieces of an HTTP body, of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._parts: list[bytes] = []
        self._limit = limit
        self._size = 0
        self._expected = 0

    def add(self, piece: pb.ProxyHttpBodyChunk) -> bool:
        """Add a body's piece; return if last. Raises PayloadTooLarge, UnexpectedAnswer."""
        if piece.seq != self._expected:
            raise UnexpectedAnswer(f"piece {piece.seq} of an HTTP body came, but piece {self._expected} was due")
        self._expected += 1
        self._size += len(piece.data)
        if self._size > self._limit:
            raise PayloadTooLarge(
                "BODY_TOO_LARGE", f"an HTTP body has more than {self._limit} bytes, the limit of this call"
            )
        self._parts.append(piece.data)
        return piece.fin

    def body(self) -> bytes:
        """Return the bytes of all pieces added so far."""
        return b"".join(self._parts)
