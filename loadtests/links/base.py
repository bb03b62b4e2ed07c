"""What every transport gives a user: one connection that blocks as gevent does.

Life: `open` (until the gateway's ack), then `receive` again and again by one greenlet while any
other may `publish`, until `receive` raises Ended. `leave` asks for a clean end, `cut` breaks the
connection; both make `receive` raise Ended, and neither waits.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from aether_trio.model.identity import Identity
from aether_trio.testing.first_message import first_message
from aether_trio.wire.pb import aether_pb2 as pb
from bench import wire
from loadtests.recorder import Recorder

OK, CUT, EOF = "OK", "CUT", "EOF"
FINAL = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED"})
"""Codes after which trying again is no use."""


class Ended(Exception):
    """The connection is over.

    `code` is OK, CUT (by us), EOF (without a word), a status, or an errno's name.
    """

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code, self.text = code, text


def ended_by(error: OSError) -> Ended:
    """The same as Ended."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return Ended(name, error.strerror or str(error))


class Unsettled(NamedTuple):
    """A message that was published and not acknowledged."""

    seq: int
    topic: str
    payload: bytes
    stamp_ns: int


@dataclass(slots=True)
class Outbox:
    """What one user has published: kept over its connections, so that a transport with
    acknowledgements can repeat it.
    """

    publisher: bytes
    next_seq: int = 1
    waiting: deque[Unsettled] = field(default_factory=deque)
    """Not sent on this connection."""
    unsettled: deque[Unsettled] = field(default_factory=deque)
    """Sent on this connection, not acknowledged."""

    def rewind(self) -> None:
        """A new connection: what was not acknowledged is sent first, in its order."""
        self.waiting.extendleft(reversed(self.unsettled))
        self.unsettled.clear()


@dataclass(slots=True)
class Opening:
    """Everything that a link has to know about its user."""

    index: int
    host: str
    port: int
    source: str
    identity: Identity
    credentials: dict[str, str]
    resume: str
    recorder: Recorder
    outbox: Outbox
    positions: dict[str, int]
    """The last offset that came, by topic; kept over connections."""
    streams: int = 1
    receive_buffer: int = 0
    """Bytes of the kernel's receive buffer; 0 leaves it to the kernel."""


def init_bytes(opening: Opening) -> bytes:
    """The first message of a connection."""
    message = first_message(opening.identity, opening.credentials)
    message.init.resume_session_id = opening.resume
    message.init.client_sdk = "aether-load"
    return message.SerializeToString()


class Link(ABC):
    """See the module docstring."""

    settles = False
    """Whether the gateway acknowledges what is published."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.recorder = opening.recorder
        self.session_id = ""
        self.resumed = False

    @abstractmethod
    def open(self) -> None:
        """Connect and wait for the ack. Raises Ended or OSError."""

    @abstractmethod
    def receive(self) -> list[bytes]:
        """The next serialized DownstreamMessages, at least one.

        The ones before count as handled. Raises Ended.
        """

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Send a serialized UpstreamMessage. Does not wait."""

    def publish(self, topic: str, payload: bytes, stamp_ns: int) -> None:
        """Send a message that was due at `stamp_ns`. Does not wait."""
        del stamp_ns
        self.send(wire.send_prefix(topic, len(payload)) + payload)

    @abstractmethod
    def leave(self) -> None:
        """Ask for a clean end."""

    @abstractmethod
    def cut(self) -> None:
        """Break the connection at once, as a cable does."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held. Idempotent."""

    def greeted(self, message: bytes) -> None:
        """Read the ConnectionAck. Raises Ended when it is something else."""
        answer = pb.DownstreamMessage.FromString(message)
        if answer.WhichOneof("payload") != "connection_ack":
            raise Ended("PROTOCOL", f"the first message is {answer.WhichOneof('payload')}, not the ConnectionAck")
        self.session_id = answer.connection_ack.session_id
        self.resumed = answer.connection_ack.resumed
