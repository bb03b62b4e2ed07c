"""Which side may send which frame when, as tables of the binary framing.

As in h11, both ends run the same machine over the same frames: each connection has a state for the
client's side and one for the server's. A frame moves the state of the side that sent it (BY_FRAME;
what is not in the table is illegal). Where a side has to wait for the other, the pair of states
moves it on (BY_PAIR):

    client  GREETING --HELLO--> OPENING --ENVELOPE (Init)--> WAITING ==server's HELLO==> LIVE
            --GOAWAY--> LEAVING
    server  IDLE ==client's HELLO==> GREETING --HELLO--> OPENING ==client LIVE==> ANSWERING
            --ENVELOPE (Ack)--> LIVE
            --GOAWAY--> LEAVING

`--` is a frame of this side, `==` one of the other side. ERROR and the end of its stream bring a
side from anywhere to DONE.

The two ends see the pair at different moments, but never disagree about what is legal: a side's
state depends on the other's only through frames that this other side has sent, and a side acts on
what it has received. What a side must not send because of a frame that may still be on its way
(SEND after the server's GOAWAY, DELIVER after the client's) can be checked at the sender only: that
is LOCALLY_ILLEGAL.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.wire.framing import events as ev


class Side(enum.Enum):
    """A side of a framed connection: client or server."""

    CLIENT = "client"
    SERVER = "server"

    __hash__ = object.__hash__  # enum's own is a call of Python for each look-up

    @property
    def peer(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class ConnectionState(enum.Enum):
    """The protocol state of one side of a framed connection."""

    IDLE = "idle"
    """Nothing but an ERROR before the client's HELLO is here. No frame leads here."""
    GREETING = "greeting"
    """Owes its HELLO."""
    OPENING = "opening"
    """Client: owes its InitConnection. Server: waits for it."""
    WAITING = "waiting"
    """Has sent its InitConnection, and does not know the server's limits yet."""
    ANSWERING = "answering"
    """Owes its ConnectionAck, or an ERROR."""
    LIVE = "live"
    LEAVING = "leaving"
    """Has said GOAWAY: finishes what has begun."""
    DONE = "done"
    """Sends nothing more."""

    __hash__ = object.__hash__


_ANY_TIME: Final = (ev.Ping, ev.Pong, ev.Skipped)


def _table(
    *stages: tuple[ConnectionState, Mapping[type, ConnectionState]],
) -> Mapping[ConnectionState, Mapping[type, ConnectionState]]:
    return MappingProxyType({state: MappingProxyType(dict(moves)) for state, moves in stages})


def _stay(state: ConnectionState, *kinds: type) -> dict[type, ConnectionState]:
    return dict.fromkeys((*kinds, *_ANY_TIME), state) | {ev.Error: ConnectionState.DONE}


_CLIENTS: Final = (ev.Send, ev.Delivered, ev.GrantCredit, ev.Envelope)
_SERVERS: Final = (ev.Channel, ev.ChannelClosed, ev.Deliver, ev.Ack, ev.Nack, ev.Envelope)

BY_FRAME: Final[Mapping[Side, Mapping[ConnectionState, Mapping[type, ConnectionState]]]] = MappingProxyType(
    {
        Side.CLIENT: _table(
            (ConnectionState.GREETING, {ev.ClientHello: ConnectionState.OPENING, ev.Error: ConnectionState.DONE}),
            (ConnectionState.OPENING, _stay(ConnectionState.OPENING) | {ev.Envelope: ConnectionState.WAITING}),
            (ConnectionState.WAITING, _stay(ConnectionState.WAITING)),
            (ConnectionState.LIVE, _stay(ConnectionState.LIVE, *_CLIENTS) | {ev.GoAway: ConnectionState.LEAVING}),
            (ConnectionState.LEAVING, _stay(ConnectionState.LEAVING, ev.Delivered, ev.Envelope)),
            (ConnectionState.DONE, {}),
        ),
        Side.SERVER: _table(
            (ConnectionState.IDLE, {ev.Error: ConnectionState.DONE}),
            (ConnectionState.GREETING, {ev.ServerHello: ConnectionState.OPENING, ev.Error: ConnectionState.DONE}),
            (ConnectionState.OPENING, _stay(ConnectionState.OPENING)),
            (ConnectionState.ANSWERING, _stay(ConnectionState.ANSWERING) | {ev.Envelope: ConnectionState.LIVE}),
            (ConnectionState.LIVE, _stay(ConnectionState.LIVE, *_SERVERS) | {ev.GoAway: ConnectionState.LEAVING}),
            (ConnectionState.LEAVING, _stay(ConnectionState.LEAVING, *_SERVERS)),
            (ConnectionState.DONE, {}),
        ),
    }
)
"""Side → state → event → next state of that side."""

BY_PAIR: Final[Mapping[tuple[ConnectionState, ConnectionState], tuple[ConnectionState, ConnectionState]]] = (
    MappingProxyType(
        {
            (ConnectionState.OPENING, ConnectionState.IDLE): (ConnectionState.OPENING, ConnectionState.GREETING),
            (ConnectionState.WAITING, ConnectionState.OPENING): (ConnectionState.LIVE, ConnectionState.ANSWERING),
        }
    )
)
"""(client, server) → (client, server), applied until nothing changes."""

LOCALLY_ILLEGAL: Final[Mapping[Side, frozenset[type]]] = MappingProxyType(
    {Side.CLIENT: frozenset({ev.Send}), Side.SERVER: frozenset({ev.Channel, ev.Deliver})}
)
"""What a side may not begin any more once the *other* one is LEAVING or DONE. ENVELOPEs are not
among it: they also carry answers (of a service, of the workflow engine) to what the other side has
asked.
"""

START: Final[Mapping[Side, ConnectionState]] = MappingProxyType(
    {Side.CLIENT: ConnectionState.GREETING, Side.SERVER: ConnectionState.IDLE}
)


_CLIENT_MOVES: Final = dict(BY_FRAME[Side.CLIENT])
_SERVER_MOVES: Final = dict(BY_FRAME[Side.SERVER])


class States:
    """The protocol states of both sides of one framed connection."""

    __slots__ = ("client", "server")

    def __init__(self) -> None:
        self.client = START[Side.CLIENT]
        self.server = START[Side.SERVER]

    def __getitem__(self, role: Side) -> ConnectionState:
        return self.client if role is Side.CLIENT else self.server

    def moves(self, role: Side) -> Mapping[type, ConnectionState]:
        """Return the frames that a side may send now, each with the state that follows."""
        return _CLIENT_MOVES[self.client] if role is Side.CLIENT else _SERVER_MOVES[self.server]

    def move(self, role: Side, after: ConnectionState) -> None:
        """Move a side to a state, then both by BY_PAIR; DONE: the side's stream has ended."""
        if role is Side.CLIENT:
            self.client = after
        else:
            self.server = after
        while (pair := BY_PAIR.get((self.client, self.server))) is not None:
            self.client, self.server = pair
