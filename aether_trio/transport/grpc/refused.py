"""Answers a request that is not gRPC, on the gRPC port, with a plain refusal.

The answer follows the end of the request, or comes soon; what is sent meanwhile is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from aether_trio.transport.grpc import response_headers
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.http2.stream import DISCARDED, Http2Stream, StreamHandler

if TYPE_CHECKING:
    from aether_trio.model.errors import StatusError
    from aether_trio.transport.http2.server_connection import ServerConnection

WAIT_S: Final = 1.0
"""For a request that does not end."""


class RefusedRequest(StreamHandler):
    """A request that is not gRPC, refused at its end; `length` is its content-length."""

    __slots__ = ("_answered", "_connection", "_http_status", "_length", "_over", "_refusal", "stream")

    def __init__(
        self, stream_id: int, connection: ServerConnection, http_status: int, refusal: StatusError, length: int | None
    ) -> None:
        self.stream = Http2Stream(stream_id, self, DISCARDED)
        self._connection = connection
        self._http_status = http_status
        self._refusal = refusal
        self._length = length
        self._answered = False
        self._over = trio.Event()
        self.stream.failure = refusal  # so the data plane drops what arrives

    @property
    def is_public(self) -> bool:
        return True

    @property
    def answered(self) -> bool:
        return self._answered

    async def answer_soon(self) -> None:
        """Send the refusal after WAIT_S at the latest, even to a request that goes on."""
        with trio.move_on_after(WAIT_S):
            await self._over.wait()
        if not self._over.is_set():
            self._answer()

    def on_peer_ended(self) -> None:
        """Send the refusal: the request is complete."""
        if self._over.is_set():
            return
        stream = self.stream
        if self._length is not None and self._length != stream.credit:
            text = f"content-length is {self._length}, and {stream.credit} bytes came"
            self._connection.stream_error(stream.stream_id, Http2ErrorCode.PROTOCOL_ERROR, text)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._answered:
            self._answered = True
            block = response_headers.plain_refusal(self._http_status, self._refusal.status, self._refusal.message)
            self._connection.send_block(self.stream.stream_id, block, end_stream=False)
            self.stream.pending = memoryview(f"{self._refusal.message}: this is a gRPC server\n".encode())
            self._connection.wire.kick(self.stream)

    def fill(self) -> bool:
        """Send the refusal's text, then end the stream."""
        plane = self._connection.plane
        if self._answered and not self._over.is_set() and plane.send_pending(self.stream):
            plane.out.append(frames.empty_end_of_stream(self.stream.stream_id))
            self._end()
        return False

    def on_broken(self) -> None:
        """Note that the stream has broken, so that no refusal is sent."""
        self._over.set()

    def evict(self, status: int, message: str) -> None:
        """End the refused request now, without an answer."""
        if not self._over.is_set():
            self._end()

    def _end(self) -> None:
        self._over.set()
        if not self.stream.ended:
            # The client may still be sending; tell it that the server reads no more (RFC 9113
            # section 8.1).
            self._connection.reset(self.stream, Http2ErrorCode.NO_ERROR)
        self._connection.forget(self.stream)
