"""Opens and serves all ports of a gateway, with one limit of connections.

Ports({"grpc": a, "framed": b}, port=50051, own={"framed": 50052}) opens them; `serve` returns when
`drain` has ended all connections.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import trio

from aether_trio.transport.socket.accepted import TransportServer
from aether_trio.transport.socket.listener import Acceptor, ListenerStatistics, TcpSettings, open_tcp_listeners
from aether_trio.transport.socket.port import Port, PortStatistics, alpn_of
from aether_trio.transport.socket.tls import TlsFiles, server_context


class Ports:
    """All ports of a gateway: the shared one, and those of single transports (`own`).

    The constructor opens them, so that OSError comes early. Port 0 picks a free one. With
    `reuse_port` other processes of this user may listen on the same ones.
    """

    def __init__(
        self,
        transports: Mapping[str, TransportServer],
        *,
        host: str | None = None,
        port: int = 0,
        own: Mapping[str, int] | None = None,
        tls: TlsFiles | None = None,
        tcp: TcpSettings | None = None,
        first_bytes_timeout_s: float = 10.0,
        reuse_port: bool = False,
    ) -> None:
        self._transports = dict(transports)
        self._tcp = tcp or TcpSettings()
        self._acceptor: Acceptor | None = None
        self._accepting = trio.CancelScope()
        self._ports: list[tuple[Port, list[socket.socket]]] = []
        addresses: dict[str, str] = {}
        try:
            for number, names in _shares(transports, port, own or {}):
                members = {name: transports[name] for name in names}
                context = None if tls is None else server_context(tls, alpn=alpn_of(members))
                made = Port(members, tls=context, first_bytes_timeout_s=first_bytes_timeout_s)
                listeners = open_tcp_listeners(host, number, backlog=self._tcp.backlog, reuse_port=reuse_port)
                self._ports.append((made, listeners))
                addresses |= dict.fromkeys(names, _address(listeners))
        except BaseException:
            self.close()
            raise
        self.addresses: Mapping[str, str] = {name: addresses[name] for name in transports}
        """HOST:PORT of each transport."""
        self.address = _address(self._ports[0][1])
        """Of the shared port; of the first transport when none shares."""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve connections on all ports, until cancelled or drained."""
        async with trio.open_nursery() as connections:
            self._acceptor = Acceptor(connections, self._tcp)
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for one, listeners in self._ports:
                        accepting.start_soon(self._acceptor.serve, listeners, one.serve)
                    task_status.started()

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept no more, ask every client to leave, and end all after `deadline_s`."""
        self._accepting.cancel()
        async with trio.open_nursery() as nursery:
            for transport in self._transports.values():
                await nursery.start(partial(transport.drain, deadline_s))
            task_status.started()

    def prepare_tls(self, tls: TlsFiles) -> list[ssl.SSLContext]:
        """Read a server's files anew, for `use_tls`. Raises OSError, which names the file."""
        return [server_context(tls, alpn=alpn_of(port.transports)) for port, _ in self._ports]

    def use_tls(self, contexts: Sequence[ssl.SSLContext]) -> None:
        """Serve new connections of all ports with the contexts of `prepare_tls`."""
        for (port, _), context in zip(self._ports, contexts, strict=True):
            port.use_tls(context)

    def close(self) -> None:
        """Close the listeners of ports that were opened but never served."""
        for _, listeners in self._ports:
            for listener in listeners:
                listener.close()

    def statistics(self) -> PortStatistics:
        """Return the statistics of all ports together."""
        undecided = 0
        chosen: Counter[str] = Counter()
        rejects: Counter[str] = Counter()
        for port, _ in self._ports:
            one = port.statistics()
            undecided += one.undecided
            chosen.update(one.chosen)
            rejects.update(one.rejects)
        return PortStatistics(undecided, dict(chosen), dict(rejects))

    def listener_statistics(self) -> ListenerStatistics:
        """Return the statistics of all ports' listeners together."""
        return ListenerStatistics(0, 0, 0, 0) if self._acceptor is None else self._acceptor.statistics()


def _shares(
    transports: Mapping[str, TransportServer], port: int, own: Mapping[str, int]
) -> list[tuple[int, list[str]]]:
    """Return (port number, its transports) for each port, the shared one first."""
    shared = [name for name in transports if name not in own]
    alone = [(own[name], [name]) for name in transports if name in own]
    return [(port, shared), *alone] if shared else alone


def _address(listeners: list[socket.socket]) -> str:
    host, port = listeners[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
