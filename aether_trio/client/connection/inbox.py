"""Buffers messages delivered to a client, and collects their acknowledgements.

A message is buffered, then taken by the application, then acknowledged. Until then it takes credit,
so `credit_messages` and `credit_bytes` (of payload and envelope) bound what is held.

* Acknowledging is cumulative per topic, so a topic's position moves when everything in front is
  done too (topics.py).
* What was buffered when the connection was cut stays, and is recognized by (topic, offset) when
  it comes again. Only a work group's messages are dropped: another member may have got them.
* `acknowledge` writes nothing; it marks, and the writer of the connection collects (`frames`), so
  that a burst of acknowledgements is one frame per topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel

from aether_trio.client.connection.topics import TopicState
from aether_trio.client.errors import MessagesAbandoned
from aether_trio.client.message import IncomingMessage
from aether_trio.wire.framing import Channel as ChannelOpened
from aether_trio.wire.framing import FramedConnection, GrantCredit
from aether_trio.wire.framing.constants import MAX_CREDIT
from aether_trio.wire.pb import aether_pb2 as pb

_GRANT_SHARE: Final = 4
"""Credit is granted when a quarter of it is missing, not for every message."""


MAX_TOPICS: Final = 1024
"""Topics that are remembered beside open topics and topics with open messages."""


class DeliveredMessage:
    """One message in a client's inbox; its bytes are dropped when it is taken."""

    __slots__ = ("data", "offset", "size", "topic")

    def __init__(self, topic: TopicState | None, offset: int, data: bytes | pb.IncomingMessage, size: int) -> None:
        self.topic = topic
        self.offset = offset
        self.data: bytes | pb.IncomingMessage | None = data
        self.size = size

    @property
    def topic_name(self) -> str:
        return self.topic.name if self.topic is not None else ""


class Inbox:
    """A client's delivered messages, bounded by the credit it gives to the gateway."""

    def __init__(self, credit_messages: int, credit_bytes: int) -> None:
        if credit_messages < 1 or credit_bytes < 1:
            raise ValueError(
                "credit_messages or credit_bytes is under 1, so no message could be delivered; give at least 1"
            )
        if credit_messages > MAX_CREDIT or credit_bytes > MAX_CREDIT:
            raise ValueError("credit_messages or credit_bytes is over 2**62, the most that the protocol can say")
        self.credit_messages = credit_messages
        self.credit_bytes = credit_bytes
        self.received = 0
        """Messages that the application has taken."""
        self.duplicates = 0
        """Deliveries that had come before, and were dropped."""
        self.wake: Callable[[], None] = lambda: None
        self.wake_soon: Callable[[], None] = lambda: None
        self._freed_messages = 0
        self._freed_bytes = 0
        """What was acknowledged since the last CREDIT."""
        self._buffer: deque[DeliveredMessage] = deque()
        self.held_messages = 0
        self.held_bytes = 0
        """Of the messages that are buffered, or taken and not yet acknowledged."""
        self._abandoned: set[DeliveredMessage] = set()
        """Messages of tasks that ended without handling them; they hold credit."""
        self._topics: dict[str, TopicState] = {}
        self._channels: dict[int, TopicState] = {}
        self._dirty: set[TopicState] = set()
        self._log = b""
        """The id of the gateway's log to which the topics' offsets belong."""
        self._news = anyio.Event()
        self._failure: BaseException | None = None
        self._ended = False

    # -- from the connection

    def hello_credit(self) -> tuple[int, int]:
        """Return how much a new gateway connection may deliver: credit less held messages."""
        return max(self.credit_messages - self.held_messages, 0), max(self.credit_bytes - self.held_bytes, 0)

    def reads(self, log: bytes) -> None:
        """Forget all topics if the gateway's HELLO names another log than the last one."""
        if log and self._log and log != self._log:
            for topic in self._topics.values():
                topic.abandon()
            self._topics, self._channels = {}, {}
            self._dirty.clear()
        self._log = log or self._log

    def open_channel(self, event: ChannelOpened) -> None:
        """Take in a CHANNEL frame: a topic will be delivered under a channel number."""
        topic = self._topics.pop(event.topic, None)
        if topic is None:
            if len(self._topics) >= MAX_TOPICS:
                self._forget_oldest()
            topic = TopicState(event.topic, shared=event.shared)
        self._topics[event.topic] = topic  # the latest again
        topic.opened(event.channel, event.position)
        self._channels[event.channel] = topic
        if topic.owes:
            self._dirty.add(topic)
            self.wake_soon()

    def _forget_oldest(self) -> None:
        """Forget the topic opened longest ago that is closed and has no unhandled message."""
        opened = set(self._channels.values())
        oldest = next((one for one in self._topics.values() if not one.busy and one not in opened), None)
        if oldest is not None:
            del self._topics[oldest.name]
            self._dirty.discard(oldest)

    def close_channel(self, channel: int) -> None:
        """Take in a CHANNEL frame with CLOSED: its topic is not delivered any more."""
        topic = self._channels.pop(channel, None)
        if topic is not None:
            topic.closed(channel)

    def deliver(self, channel: int, offset: int, message: bytes) -> None:
        """Buffer the message of a DELIVER frame, unless it was delivered before."""
        topic = self._channels[channel]
        if not topic.arrived(offset, message):
            self.duplicates += 1
            self._dirty.add(topic)  # its credit goes back, and what is done already is acknowledged
            self._tell(len(message))
            return
        self._add(DeliveredMessage(topic, offset, message, len(message)))

    def deliver_plain(self, message: pb.IncomingMessage, size: int) -> None:
        """Buffer a message from WebSocket or gRPC, which have no offsets."""
        self._add(DeliveredMessage(None, 0, message, size))

    def _add(self, arrival: DeliveredMessage) -> None:
        self.held_messages += 1
        self.held_bytes += arrival.size
        self._buffer.append(arrival)
        self._news.set()

    def frames(self, connection: FramedConnection) -> list[bytes]:
        """Return the DELIVERED and CREDIT frames that are due on this connection."""
        found: list[bytes] = []
        for topic in list(self._dirty):
            found += topic.acknowledgements(connection)
            if not topic.owes:
                self._dirty.discard(topic)
        credit = connection.credit
        if credit.message_count is not None and credit.byte_count is not None:
            grant = self.grant_due(credit.message_count, credit.byte_count)
            if grant is not None:
                found.append(connection.send(GrantCredit(*grant)))
        return found

    def grant_due(self, messages: int, size: int) -> tuple[int, int] | None:
        """Return the messages and bytes of credit to grant, or None while little is used."""
        messages = self.credit_messages - self.held_messages - messages
        size = self.credit_bytes - self.held_bytes - size
        if messages * _GRANT_SHARE < self.credit_messages and size * _GRANT_SHARE < self.credit_bytes:
            return None
        self._freed_messages = self._freed_bytes = 0
        return max(messages, 0), max(size, 0)

    def cut(self) -> None:
        """Drop the channels of a cut connection, and buffered work group messages."""
        self._channels.clear()
        self._dirty.clear()
        kept: deque[DeliveredMessage] = deque()
        for arrival in self._buffer:
            if arrival.topic is not None and arrival.topic.shared:
                self._release(arrival)
                arrival.topic.forget(arrival.offset)
            else:
                kept.append(arrival)
        self._buffer = kept
        for topic in self._topics.values():
            topic.closed()

    # -- from the application

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def _full(self) -> bool:
        """Whether no credit is left for one more delivery."""
        return self.held_messages >= self.credit_messages or self.held_bytes >= self.credit_bytes

    async def receive(self) -> IncomingMessage:
        """Wait for the next message. Raises the client's failure, or MessagesAbandoned."""
        await anyio.lowlevel.checkpoint()
        while not self._buffer:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            if self._full and len(self._abandoned) == self.held_messages:
                raise MessagesAbandoned(len(self._abandoned))
            if self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()
        arrival = self._buffer.popleft()
        self.received += 1
        data, arrival.data = arrival.data, None
        if isinstance(data, bytes):
            data = pb.DownstreamMessage.FromString(data).msg
        assert data is not None
        acknowledge, abandon = partial(self.acknowledge, arrival), partial(self.abandon, arrival)
        return IncomingMessage(data, arrival.topic_name, arrival.offset, acknowledge, abandon)

    def acknowledge(self, arrival: DeliveredMessage) -> None:
        """Note that the application has handled a message; free its credit."""
        self._abandoned.discard(arrival)
        self._release(arrival)
        topic = arrival.topic
        if topic is not None:
            topic.done(arrival.offset)
            self._dirty.add(topic)
        self._tell(arrival.size)

    def abandon(self, arrival: DeliveredMessage) -> None:
        """Note that a taken message will never be acknowledged; it keeps its credit."""
        self._abandoned.add(arrival)
        self._news.set()

    def _tell(self, size: int) -> None:
        """Wake the connection's writer: at once if much credit is missing, else soon."""
        self._freed_messages += 1
        self._freed_bytes += size
        if (
            self._freed_messages * _GRANT_SHARE >= self.credit_messages
            or self._freed_bytes * _GRANT_SHARE >= self.credit_bytes
        ):
            self.wake()
        else:
            self.wake_soon()

    def _release(self, arrival: DeliveredMessage) -> None:
        self.held_messages -= 1
        self.held_bytes -= arrival.size

    def close(self, failure: BaseException | None) -> None:
        """End the inbox; unless it failed, buffered messages can still be read."""
        if not self._ended:
            self._ended = True
            self._failure = failure
            if failure is not None:
                while self._buffer:
                    self._release(self._buffer.popleft())
            self._news.set()
