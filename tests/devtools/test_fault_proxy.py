"""Each fault of the proxy on real sockets: what both sides see, and nothing else."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from aether_trio.devtools.fault_proxy import FaultProxy, NetworkFault, ProxiedConnection, Script, open_fault_proxy
from aether_trio.devtools.random_faults import EVERY_FAULT, RandomFaults

LIMIT_S = 300


def address_of(sock: socket.socket | trio.socket.SocketType) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


async def connect_to(proxy: FaultProxy) -> trio.SocketStream:
    host, _, port = proxy.address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


@dataclass
class Ends:
    """Both ends of a proxied connection, and the connection."""

    proxy: FaultProxy
    client: trio.SocketStream
    target: trio.SocketStream
    connection: ProxiedConnection


@asynccontextmanager
async def open_ends(script: Script | None = None) -> AsyncIterator[Ends]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(LIMIT_S):
        async with (
            listener,
            open_fault_proxy(address_of(listener.socket), script) as proxy,
            await connect_to(proxy) as client,
            await listener.accept() as target,
        ):
            yield Ends(proxy, client, target, await proxy.connection(0))


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"it has ended behind {data!r}"
        data += more
    return data


async def rest(stream: trio.SocketStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def is_reset(stream: trio.SocketStream) -> bool:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError as error:
        return isinstance(error.__cause__, ConnectionResetError)
    return False


async def test_without_faults_every_byte_passes_and_each_side_ends_by_itself() -> None:
    up, down = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(2_000_000)
    async with open_ends() as ends, trio.open_nursery() as nursery:

        async def talk(stream: trio.SocketStream, say: bytes, hear: bytes) -> None:
            async with trio.open_nursery() as both:

                @both.start_soon
                async def _() -> None:
                    await stream.send_all(say)
                    await stream.send_eof()

                assert await rest(stream) == hear

        nursery.start_soon(talk, ends.client, up, down)
        nursery.start_soon(talk, ends.target, down, up)
        await ends.connection.ended()
        statistics = ends.proxy.statistics()
        assert (statistics.upstream_bytes, statistics.downstream_bytes) == (len(up), len(down))
        assert (statistics.connections, statistics.open, statistics.dropped_bytes) == (1, 0, 0)
        assert statistics.faults == {}


async def test_a_side_that_has_ended_can_still_be_answered() -> None:
    async with open_ends() as ends:
        await ends.client.send_eof()
        assert await rest(ends.target) == b""
        await ends.target.send_all(b"late")
        assert await exactly(ends.client, 4) == b"late"
        assert ends.proxy.statistics().open == 1


async def test_a_reset_of_one_side_reaches_the_other() -> None:
    async with open_ends() as ends:
        ends.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ends.client.socket.close()
        assert await is_reset(ends.target)
        await ends.connection.ended()


async def test_a_target_that_is_not_there_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with open_fault_proxy(address_of(unused)) as proxy:
            async with await connect_to(proxy) as client:
                assert await is_reset(client)
            assert proxy.statistics().unreachable == 1


async def test_cut() -> None:
    async with open_ends() as ends:
        await ends.client.send_all(b"before")
        assert await exactly(ends.target, 6) == b"before"
        ends.connection.cut()
        assert await is_reset(ends.client)
        assert await is_reset(ends.target)
        await ends.connection.ended()
        assert ends.proxy.statistics().faults == {NetworkFault.CUT: 1}


async def test_cutting_one_side_leaves_the_other_one_alone_and_unheard() -> None:
    async with open_ends() as ends:
        ends.connection.cut(client=False)
        assert await is_reset(ends.target)
        await ends.client.send_all(b"hello?")
        await ends.client.send_eof()
        assert await rest(ends.client) == b""
        await ends.connection.ended()
        assert ends.proxy.statistics().dropped_bytes == len(b"hello?")


async def test_end() -> None:
    async with open_ends() as ends:
        ends.connection.end()
        assert await rest(ends.client) == b""
        assert await rest(ends.target) == b""
        await ends.client.aclose()
        await ends.target.aclose()
        await ends.connection.ended()


@pytest.mark.parametrize("upstream", [True, False])
async def test_half_close(upstream: bool) -> None:
    async with open_ends() as ends:
        sender, receiver = (ends.client, ends.target) if upstream else (ends.target, ends.client)
        flow = ends.connection.upstream if upstream else ends.connection.downstream
        flow.half_close()
        assert await rest(receiver) == b""
        await sender.send_all(b"lost")
        await receiver.send_all(b"heard")
        assert await exactly(sender, 5) == b"heard"
        await sender.aclose()
        assert await rest(receiver) == b""


async def test_half_close_of_a_direction_that_waits_for_room() -> None:
    async with open_ends() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(ends.client.send_all, bytes(50_000_000))
        await ends.connection.upstream.until_forwarded(1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        # The rest is read and dropped, or the client would stand still for ever.
        ends.connection.upstream.half_close()
        nursery.cancel_scope.deadline = trio.current_time() + LIMIT_S
        await rest(ends.target)
    assert not nursery.cancel_scope.cancelled_caught


async def test_stall_and_release() -> None:
    async with open_ends() as ends:
        ends.connection.upstream.stall()
        await ends.client.send_all(b"held")
        await ends.target.send_all(b"the other way goes on")
        await exactly(ends.client, 21)
        assert ends.connection.upstream.forwarded_bytes == 0
        ends.connection.upstream.release()
        assert await exactly(ends.target, 4) == b"held"


async def test_a_stall_keeps_a_bounded_part_and_pushes_back() -> None:
    async with open_ends() as ends:
        ends.connection.upstream.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.client.send_all, bytes(50_000_000))
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()
        assert ends.connection.upstream.forwarded_bytes == 0


async def test_stalls_and_delays_pass() -> None:
    async with open_ends() as ends:
        ends.connection.upstream.stall(0.01)
        await ends.client.send_all(b"a")
        assert await exactly(ends.target, 1) == b"a"
        ends.connection.upstream.delay(0.05)
        before = trio.current_time()
        await ends.client.send_all(b"b")
        assert await exactly(ends.target, 1) == b"b"
        assert trio.current_time() - before >= 0.05


async def test_drop() -> None:
    async with open_ends() as ends:
        ends.connection.downstream.drop()
        await ends.target.send_all(b"gone")
        await ends.client.send_all(b"here")
        assert await exactly(ends.target, 4) == b"here"
        await ends.target.send_eof()
        assert await rest(ends.client) == b""
        assert ends.proxy.statistics().dropped_bytes == 4


async def test_truncate() -> None:
    async with open_ends() as ends:
        ends.connection.upstream.truncate(3, ends.connection.end)
        await ends.client.send_all(b"abcdef")
        assert await rest(ends.target) == b"abc"
        assert await rest(ends.client) == b""
        assert ends.proxy.statistics().faults == {NetworkFault.TRUNCATE: 1, NetworkFault.END: 1}


async def test_drip() -> None:
    async with open_ends() as ends:
        ends.connection.downstream.drip(2, 0.0)
        await ends.target.send_all(b"a bit at a time")
        assert await exactly(ends.client, 15) == b"a bit at a time"
        ends.connection.downstream.release()
        await ends.target.send_all(bytes(1_000_000))
        await exactly(ends.client, 1_000_000)


async def test_a_script_is_run_for_each_connection() -> None:
    async def script(connection: ProxiedConnection) -> None:
        await connection.upstream.until_forwarded(5)
        connection.cut()

    async with open_ends(script) as ends:
        await ends.client.send_all(b"four")
        assert await exactly(ends.target, 4) == b"four"
        await ends.client.send_all(b"5")
        assert await is_reset(ends.client)
        await ends.connection.ended()
        with pytest.raises(KeyError):
            await ends.proxy.connection(0)


@pytest.mark.parametrize("seed", range(3))
async def test_random_faults_change_no_byte_and_end_what_they_end(seed: int) -> None:
    """Every connection sees a prefix of what was sent, and none is left hanging."""
    data = random.Random(seed).randbytes(300_000)

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for piece in stream:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            pass

    async def ask(proxy: FaultProxy) -> None:
        stream = await connect_to(proxy)
        received = bytearray()
        async with stream:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, data)
                    async for piece in stream:
                        received += piece
                        if len(received) == len(data):
                            break
                    nursery.cancel_scope.cancel()
            except* trio.BrokenResourceError:
                pass
        assert data.startswith(received)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        faults = RandomFaults(random.Random(seed), mean_s=0.05, mean_bytes=50_000, stall_s=0.05)
        async with open_fault_proxy(address_of(listeners[0].socket), faults) as proxy:
            with trio.fail_after(LIMIT_S):
                async with trio.open_nursery() as clients:
                    for _ in range(40):
                        clients.start_soon(ask, proxy)
                while proxy.statistics().open:
                    await trio.sleep(0.01)
            injected = proxy.statistics().faults
            assert sum(injected.values()) > 20
            assert set(injected) <= set(EVERY_FAULT)
        nursery.cancel_scope.cancel()


async def test_a_trap_springs_before_what_it_waits_for_is_forwarded() -> None:
    async with open_ends() as ends:
        caught: list[bytes] = []
        flow = ends.connection.upstream

        def spring() -> None:
            caught.append(flow.opening)
            flow.stall()

        flow.trap(lambda data: b"COMMIT" in data, spring)
        await ends.client.send_all(b"BEGIN")
        assert await exactly(ends.target, 5) == b"BEGIN"
        assert caught == []
        await ends.client.send_all(b"COMMIT")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert caught == [b"BEGINCOMMIT"]
        assert flow.forwarded_bytes == 5
        flow.release()
        assert await exactly(ends.target, 6) == b"COMMIT"
        flow.trap(lambda data: b"COMMIT" in data, spring)
        flow.disarm()
        await ends.client.send_all(b"COMMIT")
        assert await exactly(ends.target, 6) == b"COMMIT"
