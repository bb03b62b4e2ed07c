"""Who may send what when, as tables.

As in h11, both ends run the same machine over the same frames: each connection has a state for the
client's side and one for the server's. A frame moves the state of the side that sent it (BY_FRAME;
what is not in the table is illegal). Where a side has to wait for the other, the pair of states
moves it on (BY_PAIR), so the one step that an implementation could forget is in a table as well:

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


class Role(enum.Enum):
    """A side of a connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other side."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(enum.Enum):
    """Of one side. IDLE and ANSWERING are the server's only, WAITING the client's."""

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


_ANY_TIME: Final = (ev.Ping, ev.Pong, ev.Skipped)


def _table(*stages: tuple[State, Mapping[type, State]]) -> Mapping[State, Mapping[type, State]]:
    return MappingProxyType({state: MappingProxyType(dict(moves)) for state, moves in stages})


def _stay(state: State, *kinds: type) -> dict[type, State]:
    return dict.fromkeys((*kinds, *_ANY_TIME), state) | {ev.Error: State.DONE}


_CLIENTS: Final = (ev.Send, ev.Delivered, ev.GrantCredit, ev.Envelope)
_SERVERS: Final = (ev.Channel, ev.ChannelClosed, ev.Deliver, ev.Ack, ev.Nack, ev.Envelope)

BY_FRAME: Final[Mapping[Role, Mapping[State, Mapping[type, State]]]] = MappingProxyType(
    {
        Role.CLIENT: _table(
            (State.GREETING, {ev.ClientHello: State.OPENING, ev.Error: State.DONE}),
            (State.OPENING, _stay(State.OPENING) | {ev.Envelope: State.WAITING}),
            (State.WAITING, _stay(State.WAITING)),
            (State.LIVE, _stay(State.LIVE, *_CLIENTS) | {ev.GoAway: State.LEAVING}),
            (State.LEAVING, _stay(State.LEAVING, ev.Delivered, ev.Envelope)),
            (State.DONE, {}),
        ),
        Role.SERVER: _table(
            (State.IDLE, {ev.Error: State.DONE}),
            (State.GREETING, {ev.ServerHello: State.OPENING, ev.Error: State.DONE}),
            (State.OPENING, _stay(State.OPENING)),
            (State.ANSWERING, _stay(State.ANSWERING) | {ev.Envelope: State.LIVE}),
            (State.LIVE, _stay(State.LIVE, *_SERVERS) | {ev.GoAway: State.LEAVING}),
            (State.LEAVING, _stay(State.LEAVING, *_SERVERS)),
            (State.DONE, {}),
        ),
    }
)
"""Role → state → event → next state of that side."""

BY_PAIR: Final[Mapping[tuple[State, State], tuple[State, State]]] = MappingProxyType(
    {
        (State.OPENING, State.IDLE): (State.OPENING, State.GREETING),
        (State.WAITING, State.OPENING): (State.LIVE, State.ANSWERING),
    }
)
"""(client, server) → (client, server), applied until nothing changes."""

LOCALLY_ILLEGAL: Final[Mapping[Role, frozenset[type]]] = MappingProxyType(
    {
        Role.CLIENT: frozenset({ev.Send}),
        Role.SERVER: frozenset({ev.Channel, ev.Deliver}),
    }
)
"""What a side may not begin any more once the *other* one is LEAVING or DONE. ENVELOPEs are not
among it: they also carry answers (of a service, of the workflow engine) to what the other side has
asked.
"""

START: Final[Mapping[Role, State]] = MappingProxyType({Role.CLIENT: State.GREETING, Role.SERVER: State.IDLE})


class States:
    """The pair of one connection."""

    __slots__ = ("_client", "_server")

    def __init__(self) -> None:
        self._client = START[Role.CLIENT]
        self._server = START[Role.SERVER]

    def __getitem__(self, role: Role) -> State:
        return self._client if role is Role.CLIENT else self._server

    def moves(self, role: Role) -> Mapping[type, State]:
        """What `role` may send now, and the state it is in afterwards."""
        return BY_FRAME[role][self[role]]

    def move(self, role: Role, after: State) -> None:
        """`role` has sent what brings it to `after`; DONE when its stream has ended."""
        if role is Role.CLIENT:
            self._client = after
        else:
            self._server = after
        while (pair := BY_PAIR.get((self._client, self._server))) is not None:
            self._client, self._server = pair
