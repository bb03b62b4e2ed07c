"""A TCP proxy that injects faults between a client and a server.

    async with open_fault_proxy("127.0.0.1:50051") as proxy:
        client = await connect(proxy.address)
        connection = await proxy.connection(0)
        connection.upstream.stall()                 # what the client says does not arrive ...
        connection.upstream.release()               # ... until now
        connection.cut()                            # both see a reset

`upstream` is from the client to the target, `downstream` the way back. The target may be several,
chosen anew for each connection (round_robin.py). A *script* is an async function that is run for
every connection, for as long as it lasts: `open_fault_proxy(target, script)`. RandomFaults
(random_faults.py) is one.

Invariants: without faults the proxy is invisible, half-closed streams and resets included; a
connection is one task and its children, and gone when both sockets are closed; nothing that happens
to one disturbs another.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from aether_trio.devtools.fault_flow import NetworkFault, NetworkFlow

__all__ = [
    "FaultProxy",
    "FaultProxyStatistics",
    "NetworkFault",
    "NetworkFlow",
    "ProxiedConnection",
    "Script",
    "Target",
    "open_fault_proxy",
]

Target = str | Callable[[], Sequence[str]]
""""HOST:PORT", or a function that gives the targets of each connection in order."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close() sends RST (socket(7))."""


@dataclass(frozen=True, slots=True)
class FaultProxyStatistics:
    """Counts a fault proxy's connections, bytes and faults since it was opened."""

    connections: int
    open: int
    unreachable: int
    """Clients that were reset because the target did not accept the connection."""
    upstream_bytes: int
    downstream_bytes: int
    """What was forwarded, of all connections, in each direction."""
    dropped_bytes: int
    faults: Mapping[NetworkFault, int]
    """What was injected. What follows a TRUNCATE counts as well."""


class ProxiedConnection:
    """A client's connection through a fault proxy; `number` counts from 0."""

    def __init__(
        self,
        number: int,
        client: trio.socket.SocketType,
        target: trio.socket.SocketType,
        injected: Counter[NetworkFault],
        target_address: str,
    ) -> None:
        self.number = number
        self.target_address = target_address
        self.upstream = NetworkFlow(client, target, injected)
        self.downstream = NetworkFlow(target, client, injected)
        self._client = client
        self._target = target
        self._injected = injected
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def cut(self, *, client: bool = True, target: bool = True) -> None:
        """Send RST to one side or both; a side left out learns nothing."""
        self._injected[NetworkFault.CUT] += 1
        both = client and target
        for flow in (self.upstream, self.downstream):
            flow.discard()
        for wanted, sock in ((client, self._client), (target, self._target)):
            if wanted:
                _reset(sock)
        if both:
            self._scope.cancel()

    def end(self) -> None:
        """Send FIN to both sides and drop all bytes that were not forwarded."""
        self._injected[NetworkFault.END] += 1
        self.upstream.finish()
        self.downstream.finish()

    async def ended(self) -> None:
        """Wait until both sockets of the connection are closed."""
        await self._ended.wait()

    async def run(self, script: Script | None) -> None:
        """Forward until both directions have ended, or one has failed; for the proxy."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if script is not None:
                        nursery.start_soon(script, self)
                    async with trio.open_nursery() as flows:
                        flows.start_soon(self._run_flow, self.upstream, self._client)
                        flows.start_soon(self._run_flow, self.downstream, self._target)
                    nursery.cancel_scope.cancel()
        finally:
            self._client.close()
            self._target.close()
            self._ended.set()

    async def _run_flow(self, flow: NetworkFlow, source: trio.socket.SocketType) -> None:
        whole = await flow.run()
        closed_by_us = self._client.fileno() < 0 or self._target.fileno() < 0
        if whole or closed_by_us:
            return
        # One of the two was reset by its owner: the other one is to see the same.
        _reset(self._client)
        _reset(self._target)
        self._scope.cancel()


Script = Callable[[ProxiedConnection], Awaitable[None]]
"""Run for each connection; cancelled when it ends."""


class FaultProxy:
    """A TCP proxy with its live connections. Made by `open_fault_proxy`.

    `address` is "HOST:PORT", for the clients; `target` may be changed for later ones.
    """

    def __init__(self, address: str, target: Target, script: Script | None) -> None:
        self.address = address
        self.target = target
        self.script = script
        self.open: dict[int, ProxiedConnection] = {}
        self._injected: Counter[NetworkFault] = Counter()
        self._connections = self._unreachable = 0
        # Of those that have ended.
        self._upstream_bytes = self._downstream_bytes = self._dropped_bytes = 0
        self._news = trio.Event()

    def statistics(self) -> FaultProxyStatistics:
        flows = [(one.upstream, one.downstream) for one in self.open.values()]
        return FaultProxyStatistics(
            self._connections,
            len(self.open),
            self._unreachable,
            self._upstream_bytes + sum(up.forwarded_bytes for up, _ in flows),
            self._downstream_bytes + sum(down.forwarded_bytes for _, down in flows),
            self._dropped_bytes + sum(up.dropped_bytes + down.dropped_bytes for up, down in flows),
            dict(self._injected),
        )

    async def connection(self, number: int) -> ProxiedConnection:
        """Wait for the connection with this number. Raises KeyError when it has ended."""
        while self._connections <= number:
            await self._news.wait()
        return self.open[number]

    def cut_all(self, target_address: str | None = None) -> None:
        """Cut every open connection, or those to one target."""
        for connection in list(self.open.values()):
            if target_address in {None, connection.target_address}:
                connection.cut()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept connections until cancelled; for `open_fault_proxy`."""
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        client = stream.socket
        for address in (self.target,) if isinstance(self.target, str) else self.target():
            host, _, port = address.rpartition(":")
            try:
                target = (await trio.open_tcp_stream(host.strip("[]"), int(port))).socket
            except OSError:
                continue
            break
        else:
            self._unreachable += 1
            _reset(client)
            return
        with contextlib.suppress(OSError):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = self._connections
        self._connections += 1
        connection = self.open[number] = ProxiedConnection(number, client, target, self._injected, address)
        self._news.set()
        self._news = trio.Event()
        try:
            await connection.run(self.script)
        finally:
            del self.open[number]
            up, down = connection.upstream, connection.downstream
            self._upstream_bytes += up.forwarded_bytes
            self._downstream_bytes += down.forwarded_bytes
            self._dropped_bytes += up.dropped_bytes + down.dropped_bytes


@contextlib.asynccontextmanager
async def open_fault_proxy(
    target: Target, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[FaultProxy]:
    """Forward a free port (or `port`) to `target` until the block ends."""
    (listener,) = await trio.open_tcp_listeners(port, host=host)
    bound = listener.socket.getsockname()
    proxy = FaultProxy(f"{host}:{bound[1]}", target, script)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve, listener)
        yield proxy
        nursery.cancel_scope.cancel()


def _reset(sock: trio.socket.SocketType) -> None:
    if sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.close()
