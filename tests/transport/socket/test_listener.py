"""Listeners and the accept loop."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aether_trio.transport.socket.listener import Acceptor, TcpSettings, open_tcp_listeners


@asynccontextmanager
async def accepting(handler: Any, settings: TcpSettings | None = None) -> AsyncIterator[tuple[int, Acceptor]]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            acceptor = Acceptor(nursery, settings)
            listeners = open_tcp_listeners("127.0.0.1", 0)
            port = listeners[0].getsockname()[1]
            nursery.start_soon(acceptor.serve, listeners, handler)
            yield port, acceptor
            nursery.cancel_scope.cancel()


async def hello(sock: socket.socket, _address: Any) -> None:
    sock.send(b"hello")


async def hold(sock: socket.socket, _address: Any) -> None:
    sock.send(b"hello")
    await trio.lowlevel.wait_readable(sock)


async def greeting(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await stream.receive_some()


async def test_each_connection_gets_its_handler_and_is_closed_after_it() -> None:
    async with accepting(hello) as (port, acceptor):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert b"".join([chunk async for chunk in stream]) == b"hello"
        assert acceptor.statistics().accepted == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            TcpSettings(keepalive_idle_s=7, keepalive_interval_s=3, keepalive_probes=2, user_timeout_ms=12_345),
            {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 7, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 12_345},
        ),
        (TcpSettings(keepalive_idle_s=0), {"SO_KEEPALIVE": 0}),
    ],
    ids=["keepalive", "without keepalive"],
)
async def test_accepted_sockets_look_for_dead_peers_as_set(settings: TcpSettings, expected: dict[str, int]) -> None:
    async def look(sock: socket.socket, _address: Any) -> None:
        assert sock.getblocking() is False
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        for name, value in expected.items():
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            assert (name, sock.getsockopt(level, getattr(socket, name))) == (name, value)
        sock.send(b"hello")

    async with accepting(look, settings) as (port, _):
        assert await greeting(port) == b"hello"


async def test_a_failing_handler_ends_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    async def handler(sock: socket.socket, _address: Any) -> None:
        calls.append(sock)
        if len(calls) == 1:
            raise ZeroDivisionError
        sock.send(b"hello")

    async with accepting(handler) as (port, _):
        assert await greeting(port) == b""
        assert await greeting(port) == b"hello"
    assert "connection failed" in caplog.text


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with accepting(hold, TcpSettings(max_connections=2)) as (port, acceptor):
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in streams:
            assert await stream.receive_some() == b"hello"
        assert await greeting(port) == b""
        assert acceptor.statistics().refused_over_limit == 1
        for stream in streams:
            await stream.aclose()
        while acceptor.statistics().open:
            await trio.sleep(0.01)
        assert await greeting(port) == b"hello"


class Flaky(socket.socket):
    """A listener whose accept fails with these numbers before it works."""

    def __init__(self, *failures: int) -> None:
        super().__init__()
        self.failures = list(failures)
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.setblocking(False)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise OSError(self.failures.pop(0), "as told")
        return super().accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EPROTO, errno.ENOBUFS])
async def test_accepting_survives_what_the_kernel_says(number: int) -> None:
    listener = Flaky(number, number)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Acceptor(nursery).serve, [listener], hello)
            assert await greeting(listener.getsockname()[1]) == b"hello"
            nursery.cancel_scope.cancel()
    assert listener.fileno() == -1
    assert listener.failures == []


async def test_running_out_is_said_with_advice(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    listener = Flaky(*[errno.EMFILE] * 1000)
    async with trio.open_nursery() as nursery:
        acceptor = Acceptor(nursery)
        nursery.start_soon(acceptor.serve, [listener], hello)
        with socket.create_connection(listener.getsockname()):
            while acceptor.statistics().pauses < 1000:
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "a thousand pauses are a hundred seconds"
    assert "beside the 0 that are open: as told." in said[0]
    assert "ulimit -n" in said[0]


async def test_running_out_of_descriptors_is_survived() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with accepting(hello) as (port, acceptor):
        assert await greeting(port) == b"hello"
        with socket.socket() as client:
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            try:
                with pytest.raises(BlockingIOError):
                    client.connect(("127.0.0.1", port))
                while not acceptor.statistics().pauses:
                    await trio.sleep(0.01)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await trio.lowlevel.wait_readable(client)
            assert client.recv(10) == b"hello"


def test_port_0_is_one_port_for_all_addresses() -> None:
    listeners = open_tcp_listeners(None, 0)
    try:
        ports = {listener.getsockname()[1] for listener in listeners}
        assert len(ports) == 1
        assert ports != {0}
        assert len({listener.family for listener in listeners}) == len(listeners)
    finally:
        for listener in listeners:
            listener.close()


def test_a_taken_port_is_an_error_and_nothing_is_left_open() -> None:
    first = open_tcp_listeners("127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match="in use"):
            open_tcp_listeners("127.0.0.1", first[0].getsockname()[1])
    finally:
        first[0].close()
