"""The ops port answers operators, streams tails to the authorized, and is bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from aether_trio.config import OpsSettings
from aether_trio.storage.base import StorageUnavailable
from aether_trio.telemetry import GatewayHealth, Metrics, serve_ops
from aether_trio.telemetry.ops import OpsServer
from aether_trio.wire.pb import aether_pb2 as pb

TOPIC = "ag::default::echo::1"
Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


def delivered(text: bytes, offset: int) -> tuple[int, int, bytes]:
    message = pb.IncomingMessage(source_topic="ag::default::a::1", payload=text, message_type=pb.CHAT)
    return offset, 1_700_000_000_000 + offset, pb.DownstreamMessage(msg=message).SerializeToString()


class Bytes:
    """A stream in memory for the HTTP server; it ends with the request."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError as error:
            raise ConnectionResetError from error

    async def send_all(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise BrokenPipeError from error

    async def linger(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while await self.receive():
                pass


async def serve(server: OpsServer, stream: trio.abc.Stream) -> None:
    async with stream:
        await server.handle(Bytes(stream))


@dataclass
class Log:
    messages: list[tuple[int, int, bytes]]
    asked: list[tuple[str, int | None]]
    closed: trio.Event
    more: trio.Event

    async def tail(
        self, topic: str, start: int | None, follow: bool = True
    ) -> AsyncGenerator[tuple[int, int, bytes], None]:
        self.asked.append((topic, start))
        at = len(self.messages) if start is None else start
        try:
            while True:
                while at < len(self.messages):
                    yield self.messages[at]
                    at += 1
                if not follow:
                    return
                await self.more.wait()
        finally:
            self.closed.set()

    def append(self, text: bytes) -> None:
        self.messages.append(delivered(text, len(self.messages)))
        self.more.set()
        self.more = trio.Event()


@pytest.fixture
async def log() -> Log:
    return Log([], [], trio.Event(), trio.Event())


@pytest.fixture
async def health() -> GatewayHealth:
    health = GatewayHealth()
    health.serving()
    return health


@pytest.fixture
async def server(log: Log, health: GatewayHealth) -> OpsServer:
    return make_server(log, health)


def make_server(
    log: Log | None, health: GatewayHealth | None = None, *, dev: bool = True, **settings: Any
) -> OpsServer:
    tail = log.tail if log else None
    return OpsServer(OpsSettings(**settings), health=health or GatewayHealth(), metrics=Metrics(), tail=tail, dev=dev)


@asynccontextmanager
async def connected(server: OpsServer, request: bytes = b"") -> AsyncIterator[tuple[Stream, Stream]]:
    """The client's end and the server's of a connection; `request` was sent over it."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server, theirs)
        await ours.send_all(request)
        await wait_all_tasks_blocked()
        yield ours, theirs
        await ours.aclose()


def tail_of(topic: str = TOPIC, query: str = "", *headers: str, host: str = "localhost") -> bytes:
    lines = [f"GET /v1/tail?topic={topic}{query} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def ask(server: OpsServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and half-close; give status, headers and body of the answer."""
    async with connected(server, request) as (ours, _):
        await ours.send_eof()
        answer = b"".join([chunk async for chunk in ours])
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]) if status else 0, headers, body


async def get(server: OpsServer, path: str, *headers: str) -> tuple[int, str]:
    lines = "".join(f"{line}\r\n" for line in ("Host: 127.0.0.1:9090", *headers))
    status, _, body = await ask(server, f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    return status, body.decode()


async def test_healthz_answers_even_while_not_ready(server: OpsServer, health: GatewayHealth) -> None:
    health.draining()
    assert await get(server, "/healthz") == (200, "ok\n")


async def test_readyz_follows_the_phase_and_the_probes(log: Log) -> None:
    health = GatewayHealth()
    server = make_server(log, health)
    problem: str | None = None
    health.add_probe("storage", lambda: problem)

    status, body = await get(server, "/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "phase": "starting", "problems": {}})
    health.serving()
    assert (await get(server, "/readyz"))[0] == 200
    problem = "disk full"
    status, body = await get(server, "/readyz")
    assert (status, json.loads(body)["problems"]) == (503, {"storage": "disk full"})
    problem = None
    assert (await get(server, "/readyz"))[0] == 200
    health.draining()
    health.serving()
    status, body = await get(server, "/readyz")
    assert (status, json.loads(body)["phase"]) == (503, "draining")


async def test_a_probe_that_fails_is_a_problem_and_no_crash(server: OpsServer, health: GatewayHealth) -> None:
    health.add_probe("storage", lambda: str(1 // 0))
    status, body = await get(server, "/readyz")
    assert status == 503
    assert "ZeroDivisionError" in json.loads(body)["problems"]["storage"]
    with pytest.raises(ValueError, match="already a probe 'storage'"):
        health.add_probe("storage", lambda: None)


async def test_metrics_are_prometheus_text(server: OpsServer) -> None:
    status, headers, body = await ask(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    assert b"aether_build_info" in body
    assert b"process_cpu_seconds_total" in body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", 413),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 413),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nBig: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (tail_of(host="["), 400),
        *((tail_of(*asked), 400) for asked in (("",), ("nonsense",), (TOPIC, "&from=-1"), (TOPIC, "&from=x"))),
    ],
)
async def test_what_is_refused(server: OpsServer, request_: bytes, status: int) -> None:
    got, _, body = await ask(server, request_)
    assert got == status, body
    assert body


async def test_several_requests_share_a_connection(server: OpsServer) -> None:
    async with connected(server) as (ours, _):
        for _ in range(3):
            await ours.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok\n"):
                answer += await ours.receive_some()


async def test_a_request_that_does_not_arrive_is_not_waited_for(server: OpsServer, autojump_clock: MockClock) -> None:
    async with connected(server, b"GET /healthz HT") as (ours, _):
        assert await ours.receive_some() == b""
    assert trio.current_time() >= OpsSettings().request_timeout_s


async def test_connections_beyond_the_limit_are_closed(log: Log) -> None:
    server = make_server(log, max_connections=2)
    pairs = [memory_stream_pair() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for _, theirs in pairs:
            nursery.start_soon(serve, server, theirs)
            await wait_all_tasks_blocked()
        assert await pairs[2][0].receive_some() == b""
        await pairs[0][0].aclose()
        await wait_all_tasks_blocked()
        assert await get(server, "/healthz") == (200, "ok\n")
        nursery.cancel_scope.cancel()


async def read_lines(stream: trio.abc.ReceiveStream, count: int) -> list[dict[str, Any]]:
    data = b""
    while data.count(b"}\n") < count:
        chunk = await stream.receive_some()
        assert chunk, data
        data += chunk
    return [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]


async def test_a_tail_streams_what_is_there_and_what_comes(server: OpsServer, log: Log) -> None:
    log.append(b"old")
    async with connected(server, tail_of(TOPIC, "&from=0", host="127.0.0.1")) as (ours, _):
        (old,) = await read_lines(ours, 1)
        assert old == {
            "offset": 0,
            "timestamp_ms": 1_700_000_000_000,
            "topic": TOPIC,
            "kind": "msg",
            "source": "ag::default::a::1",
            "type": "chat",
            "text": "old",
        }
        log.append("né".encode())
        log.append(b"\xff")
        first, second = await read_lines(ours, 2)
        assert (first["text"], second["payload_base64"]) == ("né", "/w==")
    assert log.asked == [(TOPIC, 0)]
    assert log.closed.is_set()


async def test_a_tail_begins_now_unless_told_otherwise(server: OpsServer, log: Log) -> None:
    log.append(b"old")
    async with connected(server, tail_of(host="localhost:9090")) as (ours, _):
        log.append(b"new")
        (line,) = await read_lines(ours, 1)
        assert line["text"] == "new"
    assert log.asked == [(TOPIC, None)]


@pytest.mark.parametrize("ahead", [b"", tail_of()], ids=["silent", "next-request-sent-ahead"])
async def test_an_idle_tail_ends_when_its_reader_leaves(server: OpsServer, log: Log, ahead: bytes) -> None:
    async with connected(server, tail_of()) as (ours, _):
        await ours.send_all(ahead)
        await wait_all_tasks_blocked()
        assert not log.closed.is_set()
    assert log.closed.is_set()
    assert log.asked == [(TOPIC, None)]


async def test_a_reader_who_stops_reading_is_cut_off(log: Log, autojump_clock: MockClock) -> None:
    blocked = trio.Event()

    async def never() -> None:
        blocked.set()
        await trio.sleep_forever()

    with structlog.testing.capture_logs() as logged:
        async with connected(make_server(log), tail_of()) as (_, theirs):
            theirs.send_stream.send_all_hook = never
            log.append(b"x")
            await log.closed.wait()
    assert blocked.is_set()
    assert logged == []


async def test_a_message_of_another_kind_is_shown_in_full(server: OpsServer, log: Log) -> None:
    update = pb.ProgressUpdate(source="ag::default::a::1", state="running", completion=0.5)
    log.messages.append((7, 1, pb.DownstreamMessage(progress_update=update).SerializeToString()))
    log.messages.append((8, 1, b"\xff\xff"))
    async with connected(server, tail_of("pg::default", "&from=0")) as (ours, _):
        shown, broken = await read_lines(ours, 2)
    assert shown["kind"] == "progress_update"
    assert shown["message"]["progress_update"]["completion"] == 0.5
    assert (broken["kind"], broken["payload_base64"]) == ("unreadable", "//8=")


class TestWhoMayTail:
    async def test_a_web_page_that_came_by_another_name_may_not(self, server: OpsServer, log: Log) -> None:
        status, _, body = await ask(server, tail_of(host="evil.example"))
        assert (status, body) == (403, b"the header Host is no loopback address; ask for 127.0.0.1 or localhost\n")
        assert log.asked == []

    @pytest.mark.parametrize(("dev", "host"), [(False, "127.0.0.1"), (True, "192.0.2.1")])
    async def test_outside_development_on_loopback_it_needs_a_token(self, log: Log, dev: bool, host: str) -> None:
        server = make_server(log, dev=dev, host=host)
        status, body = await get(server, f"/v1/tail?topic={TOPIC}")
        assert status == 403
        assert "ops.tail_token" in body

    async def test_the_token_opens_it_anywhere(self, log: Log) -> None:
        server = make_server(log, dev=False, host="192.0.2.1", tail_token="0123456789abcdef")
        for headers in ((), ("Authorization: Bearer wrong",), ("Authorization: 0123456789abcdeg",)):
            assert (await get(server, f"/v1/tail?topic={TOPIC}", *headers))[0] == 401
        request = tail_of(TOPIC, "", "Authorization: Bearer 0123456789abcdef", host="gateway.example")
        async with connected(server, request) as (ours, _):
            assert b"200" in await ours.receive_some()

    async def test_it_can_be_switched_off(self, log: Log) -> None:
        for server in (make_server(log, tail=False), make_server(None)):
            assert (await get(server, f"/v1/tail?topic={TOPIC}"))[0] == 404


class TestDeadLetters:
    """Marking one as resolved."""

    ASKED = "X-Aether-Asked-By: a test"

    @staticmethod
    def server(
        *, dev: bool = True, failing: bool = False, **settings: Any
    ) -> tuple[OpsServer, list[tuple[str, str, str]]]:
        told: list[tuple[str, str, str]] = []

        async def resolve(task_id: str, by: str, notes: str) -> bool:
            if failing:
                raise StorageUnavailable("it is away")
            told.append((task_id, by, notes))
            return task_id == "t/1"

        made = OpsServer(OpsSettings(**settings), health=GatewayHealth(), metrics=Metrics(), resolve=resolve, dev=dev)
        return made, told

    @staticmethod
    async def post(server: OpsServer, path: str, *headers: str) -> tuple[int, str]:
        lines = "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", "Content-Length: 0", *headers, "", ""])
        status, _, body = await ask(server, lines.encode())
        return status, body.decode()

    async def test_one_is_resolved_and_what_is_none_is_said(self) -> None:
        server, told = self.server()
        assert (await self.post(server, "/v1/dlq/t%2F1/resolve?by=ann&notes=by+hand", self.ASKED))[0] == 200
        status, text = await self.post(server, "/v1/dlq/t2/resolve?by=ann", self.ASKED)
        assert (status, text) == (404, "t2 is no open dead letter\n")
        assert told == [("t/1", "ann", "by hand"), ("t2", "ann", "")]

    async def test_a_web_page_and_a_request_without_a_name_are_refused(self) -> None:
        server, told = self.server()
        # Without the header.
        assert (await self.post(server, "/v1/dlq/t1/resolve?by=ann"))[0] == 403
        assert (await self.post(server, "/v1/dlq/t1/resolve", self.ASKED))[0] == 400
        assert (await self.post(server, "/metrics", self.ASKED))[0] == 405
        assert told == []

    @pytest.mark.parametrize("path", ["t%00/resolve?by=ann", "t1/resolve?by=ann%00", "t1/resolve?by=ann&notes=%00"])
    async def test_a_zero_byte_is_refused_on_every_database(self, path: str) -> None:
        server, told = self.server()
        status, text = await self.post(server, f"/v1/dlq/{path}", self.ASKED)
        assert (status, "zero byte" in text) == (400, True)
        assert told == []

    async def test_elsewhere_it_needs_the_token(self) -> None:
        server, told = self.server(dev=False)
        assert (await self.post(server, "/v1/dlq/t1/resolve?by=ann", self.ASKED))[0] == 403
        server, told = self.server(dev=False, tail_token="a token of some length")
        assert (await self.post(server, "/v1/dlq/t1/resolve?by=ann", self.ASKED))[0] == 401
        token = "Authorization: Bearer a token of some length"
        assert (await self.post(server, "/v1/dlq/t%2F1/resolve?by=ann", self.ASKED, token))[0] == 200
        assert told == [("t/1", "ann", "")]

    async def test_storage_that_is_away_is_said(self) -> None:
        server, _ = self.server(failing=True)
        status, text = await self.post(server, "/v1/dlq/t1/resolve?by=ann", self.ASKED)
        assert (status, "it is away" in text) == (503, True)


async def test_a_real_port_is_served_and_named(log: Log, health: GatewayHealth) -> None:
    async with trio.open_nursery() as nursery:
        settings = OpsSettings(port=0)

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await serve_ops(settings, health=health, metrics=Metrics(), task_status=task_status)

        address: str = await nursery.start(serve)
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError, match=r"in use|97|98"):
            await serve_ops(OpsSettings(port=int(port)), health=health, metrics=Metrics())
        nursery.cancel_scope.cancel()
