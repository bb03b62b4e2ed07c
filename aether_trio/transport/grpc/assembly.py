"""From the payload of DATA frames to whole gRPC messages, with their cap judged by the prefix.

Pure; one per connection, because what all its streams together may have announced is bounded as well: a thousand streams
with ten megabytes each under way would be allowed one by one. What is held of unfinished messages goes to the connection's
account of unfinished input, which bounds the gateway's (transport/socket/unfinished_input.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc import messages
from aether_trio.transport.grpc.messages import PREFIX, PREFIX_BYTES
from aether_trio.transport.http2.data_stream import DataStream

if TYPE_CHECKING:
    from aether_trio.transport.socket.unfinished_input import Account


class Assembler:
    """Fills inboxes. A message that cannot be accepted becomes the stream's `failure`, behind what came before it."""

    __slots__ = ("_account", "_largest", "_most", "assembling")

    def __init__(self, max_message_bytes: int, max_assembling_bytes: int, account: Account | None) -> None:
        self._account = account
        self._largest = max_message_bytes
        self._most = max_assembling_bytes
        self.assembling = 0
        """Announced and not complete, over all streams, in bytes."""

    def assemble(self, stream: DataStream, data: bytes, position: int, stop: int) -> None:
        """Put what `data[position:stop]` completes into the stream's inbox, and the beginning of a message aside."""
        if stream.partial is not None:
            position = self._continue_partial(stream, stream.partial, data, position, stop)
        inbox, largest = stream.inbox, self._largest
        while position < stop and stream.failure is None:
            body = position + PREFIX_BYTES
            if body > stop:
                stream.partial, stream.partial_need = bytearray(data[position:stop]), 0
                stream.anew = True
                return
            flag, length = PREFIX.unpack_from(data, position)
            end = body + length
            if end > stop or flag or length > largest:
                if not self._admit(stream, length):
                    return
                if end > stop:
                    stream.partial, stream.partial_need = bytearray(data[position:stop]), PREFIX_BYTES + length
                    stream.anew = True
                    return
                self.assembling -= length
                self._deliver(stream, flag, data[body:end])
            else:
                inbox.append(data[body:end])
            position = end

    def _continue_partial(self, stream: DataStream, partial: bytearray, data: bytes, position: int, stop: int) -> int:
        if not stream.partial_need:
            upto = min(position + PREFIX_BYTES - len(partial), stop)
            partial += data[position:upto]
            position = upto
            if len(partial) < PREFIX_BYTES:
                return position
            length = PREFIX.unpack_from(partial)[1]
            if not self._admit(stream, length):
                return position
            stream.partial_need = PREFIX_BYTES + length
        upto = min(position + stream.partial_need - len(partial), stop)
        partial += data[position:upto]
        if len(partial) == stream.partial_need:
            self._release(stream)
            self._deliver(stream, partial[0], bytes(memoryview(partial)[PREFIX_BYTES:]))
        return upto

    def _admit(self, stream: DataStream, length: int) -> bool:
        """Reserve room for a message that a prefix announces, or fail the stream."""
        if length > self._largest:
            self._fail(stream, messages.too_large(length, self._largest))
            return False
        if stream.reading and length > stream.largest:
            self._fail(stream, messages.too_large_to_open(length, stream.largest))
            return False
        if self.assembling + length > self._most:
            self._fail(
                stream, StatusError(Status.RESOURCE_EXHAUSTED, "too many large messages at once on one connection")
            )
            return False
        self.assembling += length
        return True

    def drop(self, stream: DataStream) -> None:
        """Give up the message that is arriving, and its reservation."""
        self._release(stream)
        self.note(stream)

    def note(self, stream: DataStream) -> None:
        """Tell the account what the stream holds of a message that is not whole. After each read that touched the stream."""
        if self._account is not None and (stream.partial is not None or stream.begun):
            held = 0 if stream.partial is None else len(stream.partial)
            stream.begun = held > 0
            anew, stream.anew = stream.anew, False
            self._account.note(stream, held, anew=anew)  # type: ignore[arg-type]  # a ServerStream is a Receiver

    def too_long_to_wait_for(self, stream: DataStream) -> StatusError | None:
        """Why a reader may not wait for the rest of what has begun: it is longer than this peer may send now."""
        length = stream.partial_need - PREFIX_BYTES
        return messages.too_large_to_open(length, stream.largest) if length > stream.largest else None

    def _release(self, stream: DataStream) -> None:
        if stream.partial_need:
            self.assembling -= stream.partial_need - PREFIX_BYTES
        stream.partial, stream.partial_need = None, 0

    def _deliver(self, stream: DataStream, flag: int, message: bytes) -> None:
        if flag:
            try:
                message = messages.packed(flag, message, stream.encoding)
            except StatusError as error:
                self._fail(stream, error)
                return
            stream.packed += 1
        stream.inbox.append(message)

    def _fail(self, stream: DataStream, failure: StatusError) -> None:
        self.drop(stream)
        stream.failure = failure
