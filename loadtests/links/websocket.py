"""The WebSocket transport: wsproto on a gevent socket, in aether.v1.proto."""

from __future__ import annotations

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from aether_trio.model.errors import Status
from loadtests.links.base import EOF, OK, Ended, Link, Opening, init_bytes
from loadtests.links.tcp import Tcp

PATH = "/v1/connect"
SUBPROTOCOL = "aether.v1.proto"
_STATUSES = {status.value: status.name for status in Status}
_RECONNECT, _STAY_AWAY, _NORMAL = 4100, 4200, 1000


def code_of(close_code: int) -> str:
    """The name of a close code: OK, a status, or the number."""
    if close_code == _NORMAL:
        return OK
    for base in (_STAY_AWAY, _RECONNECT):
        if base <= close_code < base + 100:
            return _STATUSES.get(close_code - base, f"CLOSE_{close_code}")
    return f"CLOSE_{close_code}"


class WebSocketLink(Link):
    """Nothing is acknowledged, as on gRPC."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._codec = WSConnection(ConnectionType.CLIENT)
        self._tcp: Tcp | None = None
        self._partial = bytearray()
        self._early: list[bytes] = []
        self._accepted = self._leaving = False
        # The gateway's last word; what came before it is handled first.
        self._over: Ended | None = None

    def open(self) -> None:
        """See `Link.open`."""
        self._tcp = tcp = Tcp(self.opening)
        host = f"[{self.opening.host}]" if ":" in self.opening.host else self.opening.host
        request = Request(host=f"{host}:{self.opening.port}", target=PATH, subprotocols=[SUBPROTOCOL])
        tcp.send(self._codec.send(request))
        while not self._accepted:
            self._early += self._some()
        self.send(init_bytes(self.opening))
        while not self._early:
            self._early += self._some()
        self.greeted(self._early.pop(0))

    def receive(self) -> list[bytes]:
        """See `Link.receive`."""
        if self._early:
            early, self._early = self._early, []
            return early
        while True:
            messages = self._some()
            if messages:
                return messages

    def _some(self) -> list[bytes]:
        assert self._tcp is not None
        if self._over is not None:
            raise self._over
        data = self._tcp.receive()
        if not data:
            raise Ended(OK if self._leaving else EOF, "the stream ended without a close frame")
        messages: list[bytes] = []
        try:
            self._codec.receive_data(data)
            for event in self._codec.events():
                match event:
                    case BytesMessage():
                        self._partial += event.data
                        if event.message_finished:
                            messages.append(bytes(self._partial))
                            self._partial.clear()
                    case AcceptConnection():
                        if event.subprotocol != SUBPROTOCOL:
                            raise Ended("PROTOCOL", f"the gateway chose the subprotocol {event.subprotocol}")
                        self._accepted = True
                    case RejectConnection():
                        raise Ended(f"HTTP_{event.status_code}", "the upgrade was refused")
                    case Ping():
                        self._tcp.send(self._codec.send(event.response()))
                    case CloseConnection():
                        self._over = Ended(code_of(event.code), event.reason or "")
                    case TextMessage():
                        raise Ended("PROTOCOL", "a text message in a binary subprotocol")
                    case _:
                        pass
        except RemoteProtocolError as error:
            self._over = Ended("PROTOCOL", str(error))
        return messages

    def send(self, message: bytes) -> None:
        """See `Link.send`."""
        assert self._tcp is not None
        try:
            self._tcp.send(self._codec.send(BytesMessage(data=message)))
        except LocalProtocolError:
            pass  # the gateway has closed: the reader finds out

    def leave(self) -> None:
        """See `Link.leave`."""
        if self._tcp is None or self._leaving:
            return
        self._leaving = True
        try:
            self._tcp.send(self._codec.send(CloseConnection(code=_NORMAL)))
        except LocalProtocolError:
            self._tcp.end()

    def cut(self) -> None:
        """See `Link.cut`."""
        if self._tcp is not None:
            self._tcp.cut()

    def close(self) -> None:
        """See `Link.close`."""
        if self._tcp is not None:
            self._tcp.close()
