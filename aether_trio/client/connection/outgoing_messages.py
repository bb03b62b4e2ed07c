"""A client's messages on their way to the gateway, and checks of their arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import anyio
import anyio.lowlevel

from aether_trio.client.errors import AetherError, InvalidArgument
from aether_trio.model.topics import MAX_TOPIC_BYTES

MESSAGE_TYPES: Final = range(65536)
"""The framing has two bytes for the type."""


def bytes_of(payload: bytes | str) -> bytes:
    """Return a payload as bytes, text as UTF-8. Raises TypeError for anything else."""
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    raise TypeError(f"the payload is {type(payload).__name__}, not bytes or text; encode it, as with json.dumps")


def checked_topic(target: str) -> str:
    """Return a topic that a frame can hold. Raises TypeError, InvalidArgument."""
    if not isinstance(target, str):
        raise TypeError(f"the topic is {type(target).__name__}, not a text such as 'ag::default::echo::1'")
    try:
        size = len(target) if target.isascii() else len(target.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            "ERR_INVALID_TOPIC", f"the topic {target!r} has a lone surrogate, which UTF-8 cannot encode"
        ) from None
    if size > MAX_TOPIC_BYTES:
        text = f"the topic has {size} bytes, more than {MAX_TOPIC_BYTES}: {target[:40]!r}..."
        raise InvalidArgument("ERR_INVALID_TOPIC", text)
    return target


def checked_type(kind: int) -> int:
    """Return a message type as a number. Raises TypeError, ValueError if out of range."""
    if not isinstance(kind, int):
        raise TypeError(f"the message type is {kind!r}, not a MessageType such as MessageType.CHAT")
    if kind not in MESSAGE_TYPES:
        raise ValueError(f"the message type is {int(kind)}; it must be from 0 to {MESSAGE_TYPES[-1]}")
    return int(kind)


class ClockReading(NamedTuple):
    """A time by the event loop's clock, which stops in sleep, and by the calendar's."""

    loop_s: float
    calendar_s: float

    @classmethod
    def now(cls) -> ClockReading:
        """Read both clocks."""
        return cls(anyio.current_time(), time.time())

    def before_s(self, later: ClockReading) -> float:
        """Return the seconds from this reading to `later`, by the clock that shows more."""
        return max(later.loop_s - self.loop_s, later.calendar_s - self.calendar_s)


class SendOutcome:
    """Whether the gateway committed or refused a sent message, once it is known."""

    __slots__ = ("_event", "error", "seen", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.error: AetherError | None = None
        self.seen = False
        """Whether a caller has waited for the outcome, so that a refusal is known."""
        self._event: anyio.Event | None = None

    def settle(self, error: AetherError | None = None) -> None:
        """Set the outcome: committed, or `error`. Only the first call counts."""
        if not self.settled:
            self.settled = True
            self.error = error
            if self._event is not None:
                self._event.set()

    async def committed(self) -> None:
        """Wait until the gateway has stored the message. Raises why not, ConnectionLost."""
        self.seen = True
        if self.settled:
            await anyio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        if self.error is not None:
            raise self.error


class Publication(SendOutcome):
    """A published message; `error` is its refusal, None if committed or not settled."""

    __slots__ = (
        "confirm",
        "extra",
        "first_written",
        "message_type",
        "order",
        "payload",
        "seq",
        "topic",
        "withdrawn",
        "written",
    )

    def __init__(
        self, order: int, topic: str, payload: bytes, message_type: int, extra: bytes, *, confirm: bool
    ) -> None:
        super().__init__()
        self.order = order
        """The serial number among all messages published by this client."""
        self.seq = 0
        """Its number on the framed transport, from the first time on that it is written."""
        self.first_written: ClockReading | None = None
        """When it was first written: the gateway has not committed it earlier."""
        self.topic = topic
        self.payload = payload
        self.message_type = message_type
        self.extra = extra
        self.confirm = confirm
        """The caller waits, so a barrier follows on transports without acknowledgements."""
        self.written = False
        """The present connection has written it."""
        self.withdrawn = False
        """Its caller gave up: it is not written, or not again."""

    @property
    def ever_written(self) -> bool:
        """Whether any connection has written the message, and so given it a number."""
        return bool(self.seq)


class OutgoingMessage:
    """A serialized UpstreamMessage on its way to the gateway: a request, an answer.

    `on_written` is called when a connection has taken it, or with why none will. `answer`: it may
    go out while the gateway leaves. `unanswered`: the gateway says nothing to it, or an
    ErrorResponse without an id; with `settle` a caller waits to know which. `queued` is the
    send_queue's: no connection has taken it yet.
    """

    __slots__ = ("answer", "data", "on_written", "queued", "settle", "unanswered")

    def __init__(
        self,
        data: bytes,
        on_written: Callable[[AetherError | None], None],
        *,
        answer: bool = False,
        unanswered: bool = False,
        settle: Callable[[AetherError | None], None] | None = None,
    ) -> None:
        self.data = data
        self.on_written = on_written
        self.queued = False
        self.answer = answer
        self.unanswered = unanswered
        self.settle = settle


class MessageEncoder(Protocol):
    """Protocol: how a transport encodes the messages of the send queue."""

    def encode_publication(self, publication: Publication) -> bytes | None:
        """Return a publication's bytes; None if the window is full. Raises AetherError."""

    def encode_upstream(self, upstream: OutgoingMessage) -> bytes:
        """Return the bytes of an UpstreamMessage, with the barrier that confirms it."""
