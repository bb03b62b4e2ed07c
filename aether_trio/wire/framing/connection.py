"""One framed connection without its socket: the protocol rules, for both ends.

Received bytes become events; events that are sent become bytes.

    connection = FramedConnection(Side.SERVER)
    for event in connection.receive(data):             # RemoteProtocolError: tell the peer, close
        ...
    data = connection.send(ServerHello())              # LocalProtocolError: a mistake of ours

It checks what docs/wire.md says: who may send what when (states.py), numbers, channels and credit
(ledger.py), and both frame limits. It keeps no messages and knows no time: answering a Ping,
repeating what was not acknowledged, and budgets against floods are the caller's. The preface goes
in front of the first frame that is sent, and is taken off the first one that comes.

Invariants: a call that raises LocalProtocolError has changed nothing; after RemoteProtocolError
every `receive` raises it, and an Error may still be sent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from aether_trio.wire.framing import encode, ledger
from aether_trio.wire.framing import events as ev
from aether_trio.wire.framing.constants import (
    DEFAULT_MAX_FRAME_BYTES,
    HEADER_BYTES,
    LEAST_MAX_FRAME_BYTES,
    OPENING_FRAME_BYTES,
    PREFACE,
    ErrorCode,
)
from aether_trio.wire.framing.decode import DecoderStatistics, FrameDecoder
from aether_trio.wire.framing.errors import LocalProtocolError, RemoteProtocolError
from aether_trio.wire.framing.states import BY_FRAME, LOCALLY_ILLEGAL, ConnectionState, Side, States

__all__ = ["FramedConnection"]

_DELIVER_FIXED: Final = 12
_ACCEPTED: Final = frozenset({ConnectionState.LIVE, ConnectionState.LEAVING})
_FINISHING: Final = frozenset({ConnectionState.LEAVING, ConnectionState.DONE})
_DELIVERING: Final = frozenset(state for state, moves in BY_FRAME[Side.SERVER].items() if ev.Deliver in moves)


class FramedConnection:
    """One end of a framed connection, which checks the rules of the framing.

    `max_frame_bytes` is what this end accepts, and what its HELLO has to say. `at_once`: the most
    events that one `receive` returns; while `more` is true, it has others without new bytes.
    """

    __slots__ = (
        "_decoder",
        "_delivering",
        "_greeted",
        "_max_frame_bytes",
        "_peer_max_frame_bytes",
        "_states",
        "channels",
        "credit",
        "delivery_acks",
        "minor",
        "role",
        "sequence",
    )

    def __init__(
        self, role: Side, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES, at_once: int = sys.maxsize
    ) -> None:
        if max_frame_bytes < LEAST_MAX_FRAME_BYTES:
            raise ValueError(f"max_frame_bytes is {max_frame_bytes}; it must be at least {LEAST_MAX_FRAME_BYTES}")
        self.role = role
        self._states = States()
        self._max_frame_bytes = max_frame_bytes
        self._peer_max_frame_bytes = LEAST_MAX_FRAME_BYTES
        # A client that is not authenticated yet must not cost much memory.
        opening = OPENING_FRAME_BYTES if role is Side.SERVER else max_frame_bytes
        self._decoder = FrameDecoder(opening, at_once=at_once)
        self._greeted = False
        self._delivering = False  # the states' part of `deliverable`
        self.sequence = ledger.Sequence()
        self.channels = ledger.Channels()
        self.credit = ledger.Credit()
        self.delivery_acks = True
        self.minor = 0
        """The client's from its HELLO on; what both speak, from the server's HELLO on."""

    @property
    def state(self) -> ConnectionState:
        """The protocol state of this end."""
        return self._states[self.role]

    @property
    def peer_state(self) -> ConnectionState:
        """The protocol state of the other end."""
        return self._states[self.role.peer]

    @property
    def send_limit_bytes(self) -> int:
        """The longest frame that may be sent now; an accepted client's limit grows."""
        if self.role is Side.CLIENT and self.peer_state not in _ACCEPTED:
            return OPENING_FRAME_BYTES
        return self._peer_max_frame_bytes

    @property
    def deliverable(self) -> bool:
        """Whether one more Deliver may be sent now."""
        return self._delivering and self.credit.available

    @property
    def held_bytes(self) -> int:
        """Bytes kept of an incomplete received frame; 0 while there is `more`."""
        return 0 if self._decoder.more else self._decoder.held_bytes

    @property
    def more(self) -> bool:
        """Whether received bytes wait undecoded: the next `receive` takes b""."""
        return self._decoder.more

    def give_up(self) -> None:
        """Drop an incomplete frame of the peer; every later `receive` raises."""
        self._decoder.fail(ErrorCode.TIMEOUT, "the rest of a frame is not waited for any more")
        self._move(self.role.peer, ConnectionState.DONE)

    def statistics(self) -> DecoderStatistics:
        return self._decoder.statistics()

    def send(self, event: ev.Event) -> bytes:
        """Encode one event for the caller to send. Raises LocalProtocolError."""
        if isinstance(event, ev.Deliver):
            return self.send_deliver(event.channel, event.offset, event.message)
        kind = type(event)
        after = self._may_send(kind)
        frame = encode.encode(event)
        self._may_have(len(frame) - HEADER_BYTES)
        self._account(event)
        if after is not self.state:
            self._move(self.role, after)
        if not self._greeted:
            self._greeted = True
            return PREFACE + frame
        return frame

    def send_envelopes(self, messages: Sequence[bytes]) -> list[bytes]:
        """Return messages' frames, as `send(Envelope(...))` for each without the records."""
        if not self._greeted or self._may_send(ev.Envelope) is not self.state:
            return [self.send(ev.Envelope(message)) for message in messages]
        self._may_have(max(map(len, messages), default=0))
        return [encode.encode_envelope(message) for message in messages]

    def send_deliver(self, channel: int, offset: int, message: bytes) -> bytes:
        """Return a delivery's frame, as `send(Deliver(...))` without the record."""
        frame = encode.encode_deliver(channel, offset, message)
        self.count_deliver(channel, offset, len(message))
        return frame

    def count_deliver(self, channel: int, offset: int, size: int) -> None:
        """Check and count a delivery of `size` bytes whose frame is encoded already."""
        if not self._delivering:
            self._may_send(ev.Deliver)
        if size + _DELIVER_FIXED > self._peer_max_frame_bytes:
            self._may_have(size + _DELIVER_FIXED)
        try:
            self._deliver(channel, offset, size)
        except ledger.Breach as breach:
            raise LocalProtocolError(breach.code, breach.message) from None

    def end(self) -> None:
        """Note that this end has ended its side of the stream."""
        self._move(self.role, ConnectionState.DONE)

    def receive(self, data: bytes | bytearray | memoryview) -> Sequence[ev.Event]:
        """Return the events that the next received bytes complete.

        A Delivered that comes too late for its channel is left out. Raises RemoteProtocolError,
        with the events before the mistake.
        """
        failed: RemoteProtocolError | None = None
        found: Sequence[ev.Event]
        try:
            found = self._decoder.receive(data)
        except RemoteProtocolError as error:
            failed, found = error, error.events
        peer = self.role.peer
        state = self._states[peer]
        moves = self._states.moves(peer)
        sequence = self.sequence
        late: list[int] | None = None
        for index, event in enumerate(found):
            kind = type(event)
            after = moves.get(kind, ConnectionState.IDLE)
            try:
                if after is ConnectionState.IDLE:  # where no frame leads
                    raise ledger.Breach(
                        ErrorCode.ILLEGAL_FRAME,
                        f"unexpected {kind.__name__} from a {peer.value} in the state {state.value}",
                    )
                if isinstance(event, ev.Send):  # the hot one, without the detour
                    sequence.send(event.seq)
                elif (count := _COUNTS.get(kind)) is not None:
                    count(self, event)
            except ledger.Late:
                late = [*late, index] if late else [index]
            except ledger.Breach as breach:
                failed = RemoteProtocolError(breach.code, breach.message)
                self._decoder.fail(breach.code, breach.message)
                found = found[:index]
                break
            if after is not state:
                self._move(peer, after)
                state = self._states[peer]
                moves = self._states.moves(peer)
        if late:
            found = [event for index, event in enumerate(found) if index not in late]
        if failed is not None:
            failed.events = tuple(found)
            self._move(peer, ConnectionState.DONE)
            raise failed
        return found

    def receive_end(self) -> None:
        """Note the end of the peer's stream. Raises RemoteProtocolError in a frame."""
        self._move(self.role.peer, ConnectionState.DONE)
        self._decoder.finish()

    def _may_send(self, kind: type) -> ConnectionState:
        after = self._states.moves(self.role).get(kind)
        if after is None:
            raise LocalProtocolError(
                ErrorCode.ILLEGAL_FRAME,
                f"cannot send {kind.__name__} as a {self.role.value} in the state {self.state.value}",
            )
        if self.peer_state in _FINISHING and kind in LOCALLY_ILLEGAL[self.role]:
            raise LocalProtocolError(
                ErrorCode.ILLEGAL_FRAME,
                f"cannot send {kind.__name__} to a {self.role.peer.value} in the state {self.peer_state.value}",
            )
        return after

    def _may_have(self, size: int) -> None:
        if size > self.send_limit_bytes:
            raise LocalProtocolError(
                ErrorCode.FRAME_TOO_LARGE,
                f"cannot send a frame of {size} bytes; the peer accepts {self.send_limit_bytes}",
            )

    def _account(self, event: ev.Event) -> None:
        count = _COUNTS.get(type(event))
        if count is None:
            return
        if isinstance(event, (ev.ClientHello, ev.ServerHello)) and event.max_frame != self._max_frame_bytes:
            raise LocalProtocolError(
                ErrorCode.BAD_HELLO,
                f"the HELLO has max_frame {event.max_frame}, but this end accepts {self._max_frame_bytes}",
            )
        try:
            count(self, event)
        except ledger.Breach as breach:
            raise LocalProtocolError(breach.code, breach.message) from None

    def _move(self, role: Side, after: ConnectionState) -> None:
        states = self._states
        states.move(role, after)
        if self.role is Side.SERVER:
            if states.server is ConnectionState.LIVE:
                self._decoder.max_frame_bytes = self._max_frame_bytes
            self._delivering = states.server in _DELIVERING and states.client not in _FINISHING

    # What a frame of either side changes in the ledgers.

    def _client_hello(self, hello: ev.ClientHello) -> None:
        self.minor = hello.minor
        self.delivery_acks = hello.delivery_acks
        self.credit = ledger.Credit(hello.credit_messages, hello.credit_bytes)
        if self.role is Side.SERVER:
            self._peer_max_frame_bytes = hello.max_frame

    def _server_hello(self, hello: ev.ServerHello) -> None:
        if hello.minor > self.minor:
            raise ledger.Breach(
                ErrorCode.BAD_HELLO,
                f"the server's HELLO has version 1.{hello.minor}, above the client's 1.{self.minor}",
            )
        self.minor = hello.minor
        self.sequence.window = hello.publish_window
        if self.role is Side.CLIENT:
            self._peer_max_frame_bytes = hello.max_frame

    def _deliver(self, channel: int, offset: int, size: int) -> None:
        credit = self.credit
        if credit.bounded and not credit.available:
            raise ledger.Breach(ErrorCode.BAD_CREDIT, "DELIVER without credit for one more message")
        self.channels.deliver(channel, offset)
        if credit.bounded:
            credit.take(size)

    def _delivered(self, event: ev.Delivered) -> None:
        if not self.delivery_acks:
            raise ledger.Breach(ErrorCode.ILLEGAL_FRAME, "DELIVERED, but the HELLO has asked for delivery_acks: false")
        self.channels.delivered(event.channel, event.offset)


_COUNTS: Final[Mapping[type, Callable[[FramedConnection, Any], None]]] = MappingProxyType(
    {
        ev.ClientHello: FramedConnection._client_hello,
        ev.ServerHello: FramedConnection._server_hello,
        ev.Send: lambda self, event: self.sequence.send(event.seq),
        ev.Ack: lambda self, event: self.sequence.ack(event.seq),
        ev.Nack: lambda self, event: self.sequence.nack(event.seq),
        ev.Channel: lambda self, event: self.channels.open(
            event.channel, event.topic, event.position, shared=event.shared
        ),
        ev.ChannelClosed: lambda self, event: self.channels.close(event.channel),
        ev.Deliver: lambda self, event: self._deliver(event.channel, event.offset, len(event.message)),
        ev.Delivered: FramedConnection._delivered,
        ev.GrantCredit: lambda self, event: self.credit.grant(event.message_count, event.byte_count),
    }
)
