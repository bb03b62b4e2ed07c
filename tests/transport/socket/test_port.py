"""One port, several transports: real sockets and real TLS."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.listener import Acceptor, open_tcp_listeners
from aether_trio.transport.socket.port import Port, PortStatistics, alpn_of
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.tls import server_context
from tests.helpers.tls_records import RecordClient
from tests.transport.pki import Pki

TRANSPORTS = ("grpc", "framed", "websocket")
FLIGHTS = {
    "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more",
    "framed": b"\xaeAETHER\x01and more",
    "websocket": b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n",
}
WORD_BYTES = {"grpc": 14, "framed": 7, "websocket": 4}
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(190)
TIMEOUT_S = 10


class TalkingTransport:
    """Answers with its name, the head it was given, and the client's name; then ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heads: list[bytes] = []
        self.tasks: list[trio.lowlevel.Task] = []
        self.drained_within_s: float | None = None

    async def serve(self, accepted: Accepted) -> None:
        self.heads.append(accepted.head)
        self.tasks.append(trio.lowlevel.current_task())
        who = accepted.certificate.common_name if accepted.certificate else "unnamed"
        answer = f"{self.name} serves {who}".encode()
        accepted.sock.send(answer if accepted.tls is None else accepted.tls.seal(answer))
        await trio.lowlevel.checkpoint()

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        self.drained_within_s = deadline_s
        await trio.lowlevel.checkpoint()


@dataclass
class Place:
    """A port that is served. `nursery` is that of its connections."""

    number: int
    transports: dict[str, TalkingTransport]
    port: Port
    nursery: trio.Nursery
    pki: Pki | None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[trio.SocketStream]:
        async with await trio.open_tcp_stream("127.0.0.1", self.number) as stream:
            yield stream

    @asynccontextmanager
    async def over_tls(self, *alpn: str, certificate: bool = False) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        assert self.pki is not None
        async with self.connected() as plain:
            context = self.pki.context(*alpn, certificate=certificate)
            stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1", https_compatible=True)
            await stream.do_handshake()
            yield stream

    async def answer_to(self, *parts: bytes, eof: bool = False) -> bytes:
        """The whole answer. A part leaves when the server has seen the one before."""
        async with self.connected() as stream:
            for part in parts:
                await stream.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
            if eof:
                await stream.send_eof()
            return await everything(stream)

    @property
    def statistics(self) -> PortStatistics:
        return self.port.statistics()


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def place(names: Iterable[str] = TRANSPORTS, *, pki: Pki | None = None) -> AsyncIterator[Place]:
    transports = {name: TalkingTransport(name) for name in names}
    context = None if pki is None else server_context(pki.files(), alpn=alpn_of(transports))
    port = Port(transports, tls=context, first_bytes_timeout_s=TIMEOUT_S)
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            listeners = open_tcp_listeners("127.0.0.1", 0)
            nursery.start_soon(Acceptor(nursery).serve, listeners, port.serve)
            yield Place(listeners[0].getsockname()[1], transports, port, nursery, pki)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def where() -> AsyncIterator[Place]:
    async with place() as opened:
        yield opened


@pytest.fixture
async def secure(pki: Pki) -> AsyncIterator[Place]:
    async with place(pki=pki) as opened:
        yield opened


# By the first bytes


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_first_bytes_choose_the_transport_which_gets_them_all(where: Place, transport: str) -> None:
    assert await where.answer_to(FLIGHTS[transport]) == f"{transport} serves unnamed".encode()
    assert where.transports[transport].heads == [FLIGHTS[transport]]
    assert where.statistics.chosen == dict.fromkeys(TRANSPORTS, 0) | {transport: 1}
    assert where.statistics.rejects == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_first_flight_may_be_cut_anywhere(where: Place, transport: str) -> None:
    flight = FLIGHTS[transport][:20]
    for cut in range(1, len(flight)):
        assert await where.answer_to(flight[:cut], flight[cut:]) == f"{transport} serves unnamed".encode()
    assert all(flight.startswith(head) for head in where.transports[transport].heads)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_transport_is_known_with_the_last_byte_of_its_first_word(where: Place, transport: str) -> None:
    word = FLIGHTS[transport][: WORD_BYTES[transport]]
    assert await where.answer_to(*(bytes((byte,)) for byte in word)) == f"{transport} serves unnamed".encode()
    assert where.transports[transport].heads == [word]


async def test_a_transport_serves_in_the_task_that_looked(where: Place) -> None:
    async with where.connected() as stream:
        await stream.send_all(b"G")
        while not where.statistics.undecided:
            await trio.sleep(0.01)
        await stream.send_all(b"ET ")
        assert await everything(stream) == b"websocket serves unnamed"
        (task,) = where.transports["websocket"].tasks
        assert task.parent_nursery is where.nursery
        assert not task.child_nurseries
        assert where.statistics.undecided == 0


# No transport


@pytest.mark.parametrize(
    ("parts", "says", "reason"),
    [
        ([b"hello"], b"the first bytes are not understood: this port speaks gRPC", "unknown"),
        ([b"G", b"ET", b"/"], b"the first bytes are not understood: this port speaks gRPC", "unknown"),
        ([b"\xaeAETHEX"], b"the first bytes are not understood", "unknown"),
        ([b"\x00"], b"the first bytes are not understood", "unknown"),
        ([b"PROPFIND / HTTP/1.1\r\n\r\n"], b"HTTP/1.1 400 Bad Request\r\n", "unknown"),
        ([b"x" * 60_000], b"the first bytes are not understood", "unknown"),
        ([CLIENT_HELLO], b"the client began TLS, but there is no TLS here: this port speaks gRPC", "tls_unexpected"),
        ([b"\x16"], b"the client began TLS, but there is no TLS here", "tls_unexpected"),
    ],
)
async def test_other_clients_hear_what_is_spoken(where: Place, parts: list[bytes], says: bytes, reason: str) -> None:
    assert (await where.answer_to(*parts)).startswith(says)
    assert where.statistics.rejects == {reason: 1}
    assert not any(transport.heads for transport in where.transports.values())


@pytest.mark.parametrize(
    ("transport", "says"),
    [
        ("grpc", rb"\0\0.\x07\0{9}"),  # GOAWAY
        ("framed", b"\xaeAETHER\x01"),
        ("websocket", b"HTTP/1.1 400 Bad Request\r\n"),
    ],
)
async def test_a_transport_that_is_off_refuses_in_its_own_language(transport: str, says: bytes) -> None:
    async with place([name for name in TRANSPORTS if name != transport]) as where:
        answer = await where.answer_to(FLIGHTS[transport])
        assert re.match(says, answer)
        assert b"not spoken here: this port speaks " in answer
        assert where.statistics.rejects == {"transport_off": 1}


@pytest.mark.parametrize(
    ("said", "reason", "says"), [(b"", "silent", b""), (b"PR", "truncated", b"the connection ended too early")]
)
async def test_a_client_that_ends_before_saying_enough(where: Place, said: bytes, reason: str, says: bytes) -> None:
    assert (await where.answer_to(said, eof=True)).startswith(says)
    assert where.statistics.rejects == {reason: 1}


@pytest.mark.parametrize(("said", "reason"), [(b"", "silent"), (b"PR", "truncated")])
async def test_a_client_that_resets_is_only_counted(said: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    async with place() as where:
        async with where.connected() as stream:
            await stream.send_all(said)
            while not where.statistics.undecided:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while not where.statistics.rejects:
            await trio.sleep(0.01)
        assert where.statistics.rejects == {reason: 1}
    assert caplog.text == ""


@pytest.mark.parametrize("said", [b"", b"PRI * HT", b"\xaeAETH", b"OPTION"])
async def test_who_does_not_go_on_is_closed_at_the_deadline(where: Place, said: bytes, jumpy: MockClock) -> None:
    before = trio.current_time()
    assert await where.answer_to(said) == b""
    assert trio.current_time() - before >= TIMEOUT_S
    assert where.statistics == PortStatistics(0, dict.fromkeys(TRANSPORTS, 0), {"timeout": 1})


async def test_bytes_that_dribble_do_not_move_the_deadline(where: Place, jumpy: MockClock) -> None:
    async with where.connected() as stream:
        for byte in b"PRI * HTTP/2":
            await stream.send_all(bytes((byte,)))
            await trio.sleep(TIMEOUT_S / 5)
            if not where.statistics.undecided:
                break
        assert where.statistics.rejects == {"timeout": 1}


# TLS


@pytest.mark.parametrize(("protocol", "transport"), [("h2", "grpc"), ("aether/1", "framed"), ("http/1.1", "websocket")])
async def test_the_alpn_answer_chooses_the_transport_before_bytes(secure: Place, protocol: str, transport: str) -> None:
    async with secure.over_tls("unheard-of", protocol) as stream:
        assert stream.selected_alpn_protocol() == protocol
        assert await everything(stream) == f"{transport} serves unnamed".encode()


async def test_a_browser_that_would_take_http2_too_gets_http1(secure: Place) -> None:
    async with secure.over_tls("h2", "http/1.1") as stream:
        assert await everything(stream) == b"websocket serves unnamed"


@pytest.mark.parametrize("offer", [(), ("unheard-of",)])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_alpn_the_first_bytes_choose(secure: Place, transport: str, offer: tuple[str, ...]) -> None:
    async with secure.over_tls(*offer) as stream:
        for byte in FLIGHTS[transport][: WORD_BYTES[transport]]:
            await stream.send_all(bytes((byte,)))  # a record each
            await trio.testing.wait_all_tasks_blocked()
        assert await everything(stream) == f"{transport} serves unnamed".encode()


async def test_the_transport_learns_who_the_client_certificate_names(secure: Place) -> None:
    async with secure.over_tls("aether/1", certificate=True) as stream:
        assert await everything(stream) == b"framed serves agent-7"
    async with secure.over_tls(certificate=True) as stream:
        await stream.send_all(FLIGHTS["grpc"])
        assert await everything(stream) == b"grpc serves agent-7"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (FLIGHTS["grpc"], rb"\0\0.\x07\0{9}"),  # GOAWAY
        (FLIGHTS["framed"], b"\xaeAETHER\x01"),
        (FLIGHTS["websocket"], b"HTTP/1.1 400 Bad Request\r\n"),
        (b"hello", b"TLS is required here"),
        (b"P", b"TLS is required here"),
    ],
)
async def test_plaintext_on_a_tls_port_is_told(secure: Place, said: bytes, says: bytes) -> None:
    answer = await secure.answer_to(said)
    assert re.match(says, answer)
    assert b"TLS is required here: this port speaks " in answer
    assert secure.statistics.rejects == {"tls_missing": 1}


async def test_an_error_under_tls_is_told_under_tls(pki: Pki) -> None:
    async with place(["framed"], pki=pki) as where, where.over_tls() as stream:
        await stream.send_all(b"hello")
        assert (
            await everything(stream)
            == b"the first bytes are not understood: this port speaks the aether binary framing, over TLS\n"
        )
        assert where.statistics.rejects == {"unknown": 1}


@pytest.mark.parametrize("said", [CLIENT_HELLO, b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_is_none_fails_and_is_counted(secure: Place, said: bytes) -> None:
    await secure.answer_to(said, eof=True)
    assert secure.statistics.rejects == {"tls_handshake": 1}


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x40\x00\x01"])
async def test_a_stalled_handshake_is_closed_at_the_deadline(secure: Place, said: bytes, jumpy: MockClock) -> None:
    assert await secure.answer_to(said) == b""
    assert secure.statistics.rejects == {"timeout": 1}


async def test_silence_after_the_handshake_is_closed_at_the_same_deadline(secure: Place, jumpy: MockClock) -> None:
    before = trio.current_time()
    async with secure.over_tls() as stream:
        await trio.sleep(TIMEOUT_S / 2)
        assert await everything(stream) == b""
    assert trio.current_time() - before < 1.5 * TIMEOUT_S
    assert secure.statistics.rejects == {"timeout": 1}


async def test_records_without_a_plain_byte_in_them_have_a_limit(secure: Place, pki: Pki, tmp_path: Path) -> None:

    def update_keys() -> None:
        with socket.create_connection(("127.0.0.1", secure.number), timeout=60) as sock:
            client = RecordClient.over(sock, pki.context(), tmp_path)
            with contextlib.suppress(ConnectionError):
                while True:
                    sock.sendall(client.key_updates(100, answer=False))

    await trio.to_thread.run_sync(update_keys)
    assert secure.statistics.rejects == {"tls_records": 1}


# Several ports


async def test_a_transport_with_a_port_of_its_own_is_spoken_there_alone(pki: Pki) -> None:
    transports = {name: TalkingTransport(name) for name in TRANSPORTS}
    ports = Ports(transports, host="127.0.0.1", own={"framed": 0}, first_bytes_timeout_s=TIMEOUT_S)
    assert ports.addresses["grpc"] == ports.addresses["websocket"] == ports.address != ports.addresses["framed"]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(ports.serve)
            for transport, address in ports.addresses.items():
                for spoken, flight in FLIGHTS.items():
                    host, number = address.split(":")
                    async with await trio.open_tcp_stream(host, int(number)) as stream:
                        await stream.send_all(flight)
                        answer = await everything(stream)
                    if ports.addresses[spoken] == address:
                        assert answer == f"{spoken} serves unnamed".encode()
                    else:
                        assert b"not spoken here" in answer, (transport, spoken)
            assert ports.statistics().chosen == {"grpc": 2, "framed": 1, "websocket": 2}
            assert ports.statistics().rejects == {"transport_off": 4}
            assert ports.listener_statistics().accepted == 9

            await ports.drain(7)
            assert {transport.drained_within_s for transport in transports.values()} == {7}
        # Left without a cancel: `serve` returns when it has been drained.
        for address in set(ports.addresses.values()):
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))


async def test_with_a_port_for_each_transport_there_is_no_other() -> None:
    ports = Ports(
        {name: TalkingTransport(name) for name in TRANSPORTS}, host="127.0.0.1", own=dict.fromkeys(TRANSPORTS, 0)
    )
    assert len(set(ports.addresses.values())) == 3
    assert ports.address == ports.addresses["grpc"]
    ports.close()


async def test_a_port_that_is_taken_closes_those_that_were_opened() -> None:
    (taken,) = open_tcp_listeners("127.0.0.1", 0)
    with taken:
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            Ports({name: TalkingTransport(name) for name in TRANSPORTS}, host="127.0.0.1", own={"websocket": number})


def test_a_port_without_transports_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="without any transport"):
        Port({})
