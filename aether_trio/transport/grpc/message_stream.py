"""Assembles, reads and sends gRPC messages on one HTTP/2 stream.

A message's length is judged at its five-byte prefix, before one byte of it is kept, together with
what all streams of the connection have announced (AssemblyBudget). What is held of unfinished
messages counts in the gateway's account (transport/socket/unfinished_input.py). Compressed messages
wait as they came until they are read (decompression.py).

Invariants: a message that cannot be accepted becomes the stream's `failure`, behind what came
before it; every coroutine here is a checkpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from grpclib.exceptions import ProtocolError

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc import message_encoding
from aether_trio.transport.grpc.decompression import DecompressionTurns, Decompressor
from aether_trio.transport.grpc.message_encoding import PREFIX, PREFIX_BYTES, CompressedMessage
from aether_trio.transport.http2.stream import MESSAGES_AT_ONCE, Http2Stream, StreamHandler
from aether_trio.transport.link import LinkBroken

if TYPE_CHECKING:
    from aether_trio.transport.grpc.limits import GrpcLimits
    from aether_trio.transport.http2.connection_io import ConnectionIo
    from aether_trio.transport.socket.unfinished_input import InputAccount


class AssemblyBudget:
    """Bounds the memory for one connection's unfinished and compressed gRPC messages."""

    __slots__ = ("_decompressor", "_turns", "account", "assembling", "limits")

    def __init__(
        self, limits: GrpcLimits, account: InputAccount | None = None, turns: DecompressionTurns | None = None
    ) -> None:
        self.limits = limits
        self.account = account
        self.assembling = 0
        """Bytes announced and not complete, over all streams."""
        self._turns = turns
        self._decompressor: Decompressor | None = None

    @property
    def decompressor(self) -> Decompressor:
        """The connection's decompressor, made when its first compressed message is read."""
        if self._decompressor is None:
            self._decompressor = Decompressor(self._turns or DecompressionTurns())
        return self._decompressor

    def reserve(self, length: int) -> bool:
        """Reserve memory for an announced message; return False when there is too little."""
        if self.assembling + length > self.limits.max_assembling_bytes:
            return False
        self.assembling += length
        return True

    def release(self, length: int) -> None:
        """Free the memory that was reserved for a message, complete or given up."""
        self.assembling -= length


class MessageStream:
    """Sends and receives the gRPC messages of one RPC on its HTTP/2 stream."""

    __slots__ = (
        "_begun", "_budget", "_connection", "_encoding", "_largest", "_need", "_other", "_packed", "_partial",
        "accepted", "stream",
    )  # fmt: skip

    def __init__(
        self,
        stream_id: int,
        handler: StreamHandler,
        connection: ConnectionIo,
        budget: AssemblyBudget,
        *,
        encoding: str = "identity",
    ) -> None:
        self.stream = Http2Stream(stream_id, handler, self)
        self.accepted = False
        """Whether the client's session is accepted."""
        self._connection = connection
        self._budget = budget
        self._encoding = encoding
        self._largest = budget.limits.opening_bytes
        """The longest message that a reader waits for, in bytes: little before `accept`."""
        self._partial: bytearray | None = None
        """The beginning of a message, prefix included."""
        self._need = 0
        """Bytes of prefix and message together, once the prefix is complete."""
        self._begun = False
        """Whether the account of unfinished input knows of the partial message."""
        self._other = False
        """Whether the partial message is another one than the account knows of."""
        self._packed = 0
        """How many messages in the inbox are compressed."""

    @property
    def partial_bytes(self) -> int:
        """The bytes held of a message that has not arrived completely."""
        return 0 if self._partial is None else len(self._partial)

    @property
    def announced_bytes(self) -> int:
        """The bytes reserved in the budget for the message that is arriving."""
        return max(0, self._need - PREFIX_BYTES)

    def accept(self) -> None:
        """Allow messages of full length from now on: the client's session is accepted."""
        self.accepted = True
        self._largest = self._budget.limits.max_receive_message_bytes

    # Assembling: PayloadReader --------------------------------------------------------------------

    def read(self, data: bytes, position: int, stop: int) -> None:
        """Take the DATA payload `data[position:stop]`: queue its messages, keep the rest."""
        stream = self.stream
        if self._partial is not None:
            position = self._continue_partial(self._partial, data, position, stop)
        inbox, largest = stream.inbox, self._budget.limits.max_receive_message_bytes
        while position < stop and stream.failure is None:
            body = position + PREFIX_BYTES
            if body > stop:
                self._begin(data[position:stop], 0)
                return
            flag, length = PREFIX.unpack_from(data, position)
            end = body + length
            if end > stop or flag or length > largest:
                if not self._admit(length):
                    return
                if end > stop:
                    self._begin(data[position:stop], PREFIX_BYTES + length)
                    return
                self._budget.release(length)
                self._deliver(flag, data[body:end])
            else:
                inbox.append(data[body:end])
            position = end

    def _begin(self, part: bytes, need: int) -> None:
        self._partial, self._need = bytearray(part), need
        self._other = True

    def _continue_partial(self, partial: bytearray, data: bytes, position: int, stop: int) -> int:
        if not self._need:
            upto = min(position + PREFIX_BYTES - len(partial), stop)
            partial += data[position:upto]
            position = upto
            if len(partial) < PREFIX_BYTES:
                return position
            length = PREFIX.unpack_from(partial)[1]
            if not self._admit(length):
                return position
            self._need = PREFIX_BYTES + length
        upto = min(position + self._need - len(partial), stop)
        partial += data[position:upto]
        if len(partial) == self._need:
            self._release()
            self._deliver(partial[0], bytes(memoryview(partial)[PREFIX_BYTES:]))
        return upto

    def _admit(self, length: int) -> bool:
        """Reserve memory for a message of the announced length, or fail the stream."""
        largest = self._budget.limits.max_receive_message_bytes
        if length > largest:
            self._fail(message_encoding.too_large(length, largest))
        elif self.stream.reading and length > self._largest:
            self._fail(message_encoding.too_large_to_open(length, self._largest))
        elif not self._budget.reserve(length):
            text = "too many large messages at once on one connection"
            self._fail(StatusError(Status.RESOURCE_EXHAUSTED, text))
        else:
            return True
        return False

    def _deliver(self, flag: int, message: bytes) -> None:
        if flag:
            try:
                message = message_encoding.compressed_message(flag, message, self._encoding)
            except StatusError as error:
                self._fail(error)
                return
            self._packed += 1
        self.stream.inbox.append(message)

    def _release(self) -> None:
        if self._need:
            self._budget.release(self._need - PREFIX_BYTES)
        self._partial, self._need = None, 0

    def _fail(self, failure: StatusError) -> None:
        self.drop()
        self.stream.failure = failure

    def end(self) -> None:
        """Fail the stream if the peer has ended it in the middle of a message."""
        if self._partial is not None:
            self._connection.plane.fail(
                self.stream, StatusError(Status.INTERNAL, "the stream ended in the middle of a message")
            )

    def drop(self) -> None:
        """Drop the unfinished message and free its reservation."""
        self._release()
        self.after_read()

    def after_read(self) -> None:
        """Report the unfinished message's size to the gateway's memory account."""
        account = self._budget.account
        if account is not None and (self._partial is not None or self._begun):
            held = self.partial_bytes
            self._begun = held > 0
            other, self._other = self._other, False
            account.note(self, held, anew=other)

    # Unfinished messages: MessageReceiver (unfinished_input.py) -----------------------------------

    @property
    def awaits_rest(self) -> bool:
        """Whether the rest of a message may arrive: a reader waits, the window is open."""
        return self.stream.reading and self._connection.plane.has_room

    def give_up(self, error: StatusError) -> None:
        """Fail the stream with `error`: its unfinished message was given up."""
        self._connection.counters.reject("unfinished_message")
        self._connection.plane.fail(self.stream, error)
        self.stream.wake()

    # Receiving ------------------------------------------------------------------------------------

    async def receive_batch(self, offer: Callable[[], bool] | None = None) -> list[bytes]:
        """Return the next messages; [] at the end. Raises StatusError and LinkBroken.

        `offer` is called when messages have come while this waits; it may `take_now` them, and
        returns whether this is to return, with [] if nothing else has come.
        """
        await self._wait_for_news(offer)
        if self.stream.inbox:
            return await self._unpack() if self._packed else self._connection.take(self.stream)
        self._raise_what_happened()
        return []

    def take_now(self) -> list[bytes]:
        """Take what has come without waiting; [] when a message is to be decompressed."""
        return [] if self._packed else self._connection.plane.take(self.stream)

    def receive_nowait(self) -> Sequence[bytes]:
        """Return the messages that have arrived, unless some are compressed; () for none."""
        if self._packed or not self.stream.inbox:
            return ()
        return self._connection.take(self.stream)

    async def receive_one(self) -> bytes | None:
        """Return the next message; None once the peer has ended the stream."""
        await self._wait_for_news()
        inbox = self.stream.inbox
        if not inbox:
            self._raise_what_happened()
            return None
        if isinstance(inbox[0], CompressedMessage):
            return await self._decompress()
        message = inbox.pop(0)
        if not inbox:
            self._connection.take(self.stream)
        return message

    def _wait_for_news(self, offer: Callable[[], bool] | None = None) -> Awaitable[object]:
        length = self._need - PREFIX_BYTES
        if length > self._largest and not self.stream.has_news:
            # The rest would be waited for, and is longer than this peer may send now.
            self._connection.plane.fail(self.stream, message_encoding.too_large_to_open(length, self._largest))
        return self._connection.wait_for_news(self.stream, offer)

    def _raise_what_happened(self) -> None:
        if self.stream.failure is not None:
            raise self.stream.failure
        if self.stream.broken_reason is not None:
            raise LinkBroken(self.stream.broken_reason)

    async def _unpack(self) -> list[bytes]:
        """Return the messages before the first compressed one, or decompress that one."""
        inbox = self.stream.inbox
        count = next(index for index, message in enumerate(inbox) if isinstance(message, CompressedMessage))
        count = min(count, MESSAGES_AT_ONCE)
        if not count:
            return [await self._decompress()]
        batch = inbox[:count]
        del inbox[:count]
        return batch

    async def _decompress(self) -> bytes:
        """Decompress the inbox's first message, or fail the stream with a StatusError."""
        stream, largest = self.stream, self._largest
        try:
            message = await self._budget.decompressor.decompress(stream.inbox[0], self._encoding, largest)
        except StatusError as failure:
            error = failure
            most = self._budget.limits.max_receive_message_bytes
            if error.status is Status.RESOURCE_EXHAUSTED and largest < most:
                error = message_encoding.too_large_to_open(largest + 1, largest)
            stream.inbox.clear()
            self._packed = 0
            self._connection.plane.fail(stream, error)
            raise error from None
        stream.inbox.pop(0)
        self._packed -= 1
        if not stream.inbox:
            self._connection.take(stream)
        return message

    # Sending --------------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Whether bytes that were sent have not reached the kernel yet."""
        return self.stream in self._connection.dirty

    async def send(self, batch: list[bytes]) -> None:
        """Send serialized messages and wait for the kernel. Raises as `check_sendable`."""
        await self._connection.send(self.stream, message_encoding.with_prefixes(batch))
        self.check_sendable()

    async def wait_drained(self) -> None:
        """Wait until the kernel has all bytes sent so far. Raises as `check_sendable`."""
        await self._connection.wait_drained(self.stream)
        self.check_sendable()

    def check_sendable(self) -> None:
        """Raise LinkBroken if the stream was cut, ProtocolError if we have ended it."""
        if self.stream.broken_reason is not None:
            raise LinkBroken(self.stream.broken_reason)
        if self.stream.finished:
            raise ProtocolError("cannot send: this side has ended the stream already")

    def release(self) -> None:
        """Drop all received messages: the RPC's task has ended."""
        self.stream.inbox.clear()
