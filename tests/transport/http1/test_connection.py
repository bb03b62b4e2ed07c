"""The HTTP/1.1 server on real sockets: bodies, keep-alive, and hostile clients."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Http1Limits, Request
from fuzz.http1 import Stream
from tests.transport.http1.harness import Client, Served, serving

TEXT = [("Content-Type", "text/plain")]
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"fff\r\n" + b"x" * 4095 + b"\r\n"


async def echo(http: Http1Connection, request: Request) -> bool:
    """Answers with the body, or with what the path asks for."""
    if request.path == "/unread":
        await http.respond(HTTPStatus.OK, TEXT, b"not read")
    elif request.path == "/stream":
        await http.start_response(HTTPStatus.OK, TEXT)
        async for part in http.body_parts():
            await http.send_body(part)
        await http.end_response()
    elif request.path == "/last":
        await http.respond(HTTPStatus.OK, TEXT, b"bye", close=True)
        return False
    else:
        status = HTTPStatus(int(request.query or 200))
        await http.respond(status, TEXT, await http.read_body() or request.method.encode())
    return True


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(echo, max_body_bytes=100_000) as opened:
        yield opened


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:
    async with served.connect() as opened:
        yield opened


async def test_bodies_of_both_kinds_on_one_connection(client: Client) -> None:
    for body in (b"x" * 90_000, [b"a" * 40_000, b"b", b"c" * 20_000], b"", [], b"last"):
        whole = b"".join(body) if isinstance(body, list) else body
        status, headers, answer = await client.ask("/", "POST", body)
        assert (status, answer, headers["server"]) == (200, whole or b"POST", "test")
    assert await client.ask("/stream", "PUT", [b"one", b"two"]) == (
        200,
        {"content-type": "text/plain", "server": "test", "transfer-encoding": "chunked"},
        b"onetwo",
    )


async def test_requests_sent_ahead_with_bodies_are_answered_in_turn(client: Client) -> None:
    for number in range(3):
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d" % number)
    received = b""
    while not received.endswith(b"\r\n\r\n02"):
        received += await client.stream.receive_some()
    assert [received.count(b"\r\n\r\n%02d" % number) for number in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(client: Client, status: int) -> None:
    got, headers, body = await client.ask(f"/?{status}", "POST", b"hello")
    assert (got, body, "content-length" in headers) == (status, b"", False)
    assert (await client.ask("/", "POST", b"hello"))[2] == b"hello"


async def test_head_has_no_body_however_it_is_answered(client: Client) -> None:
    await client.send(b"HEAD /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    await client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    heads = (await client.rest()).split(b"\r\n\r\n")
    assert [head[:15] for head in heads] == [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b""]


async def test_http_1_0_gets_its_body_up_to_the_end_of_the_connection(client: Client) -> None:
    await client.send(b"POST /stream HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert (b"chunked" in head, body) == (False, b"hello")


async def test_a_client_that_asks_first_is_told_to_go_on(client: Client) -> None:
    await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
    await client.send(b"hello")
    assert (await client.stream.receive_some()).endswith(b"hello")


async def test_a_body_that_is_not_read_is_the_connections_last_and_its_answer_arrives(client: Client) -> None:
    head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
    await client.send(head + b"x" * 50_000)
    received = await client.rest()
    assert b"Connection: close" in received
    assert received.endswith(b"not read")


async def test_an_answer_may_end_the_connection(client: Client) -> None:
    assert (await client.ask("/last"))[::2] == (200, b"bye")
    assert await client.rest() == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (CHUNKED + CHUNK, None),
        (CHUNKED + b"xyz\r\n", 400),
        (CHUNKED + b"1" + b"0" * 30 + b"\r\n", 400),
        (CHUNKED + b"1;" + b"e" * 20_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad header: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 130 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 17_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 100_000, 431),
        (b"GET \x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
async def test_what_cannot_be_served_ends_the_connection(served: Served, sent: bytes, status: int | None) -> None:
    async with served.connect() as client:
        await client.send(sent)
        # More than the limit comes in pieces: it is refused when the limit is passed.
        if status is None:
            for _ in range(30):
                try:
                    await client.send(CHUNK)
                except trio.BrokenResourceError:
                    break
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % (status or 413)), head
        assert b"Connection: close" in head
        assert body
    assert [int(error.status) for error in served.refused] == [status or 413]


async def test_a_body_that_is_cut_off_is_no_body(client: Client) -> None:
    await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel")
    await client.stream.send_eof()
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b""),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel", b"HTTP/1.1 408 "),
        (CHUNKED + b"5\r\nhel", b"HTTP/1.1 408 "),
    ],
)
async def test_a_client_that_does_not_go_on_is_not_waited_for(sent: bytes, answer: bytes) -> None:
    limits = {"max_body_bytes": 10, "head_timeout_s": 0.1, "body_timeout_s": 0.1}
    async with serving(echo, **limits) as served, served.connect() as client:
        await client.send(sent)
        assert (await client.rest())[:13] == answer


async def test_a_body_has_one_deadline_however_it_trickles() -> None:
    async with serving(echo, max_body_bytes=10_000_000, body_timeout_s=0.3) as served, served.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        with trio.fail_after(300):
            while not served.refused:
                try:
                    await client.send(b"x")
                except trio.BrokenResourceError:
                    break
                await trio.sleep(0.01)
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_does_not_read_is_given_up() -> None:
    async def flood(http: Http1Connection, _request: Request) -> bool:
        await http.start_response(HTTPStatus.OK, TEXT)
        while True:
            await http.send_body(b"x" * 1_000_000)

    async with serving(flood, write_timeout_s=0.1) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(300):
            while not served.ended:
                await trio.sleep(0.01)
    assert served.ended == ["TooSlowError"]


async def test_many_small_chunks_leave_other_tasks_their_turns(client: Client) -> None:
    head = b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head + b"1\r\nx\r\n" * 3_000 + b"0\r\n\r\n")
    assert (await client.answer_of("POST"))[2] == b"x" * 3_000


@pytest.mark.parametrize(("count", "size", "served"), [(4_096, 1, True), (4_200, 1, False), (8_000, 64, True)])
async def test_a_body_comes_in_no_more_parts_than_its_length_needs(count: int, size: int, served: bool) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    http = Http1Connection(Stream(iter([head + chunk * count + b"0\r\n\r\n"])), Http1Limits(max_body_bytes=10**6))
    assert await http.next_request() is not None
    if served:
        assert len(await http.read_body()) == count * size
        return
    with pytest.raises(BadRequest, match="in parts that are too small: send 64 bytes"):
        await http.read_body()


@given(
    bodies=st.lists(st.lists(st.binary(min_size=1, max_size=50), max_size=4), min_size=1, max_size=3),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 2_000), max_size=20),
)
def test_every_split_gives_the_same_bodies(bodies: list[list[bytes]], chunked: bool, cuts: list[int]) -> None:
    whole = b""
    for parts in bodies:
        body = b"".join(parts)
        whole += b"POST / HTTP/1.1\r\nHost: x\r\n"
        if chunked:
            framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            whole += b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
        else:
            whole += b"Content-Length: %d\r\n\r\n" % len(body) + body
    points = sorted({cut % len(whole) for cut in cuts} | {0, len(whole)})
    pieces = [whole[a:b] for a, b in itertools.pairwise(points)]

    async def read() -> list[bytes]:
        http = Http1Connection(Stream(iter(pieces)), Http1Limits(max_body_bytes=1_000))
        found = []
        while await http.next_request() is not None:
            found.append(await http.read_body())
            await http.respond(HTTPStatus.OK, [], b"")
        return found

    assert trio.run(read) == [b"".join(parts) for parts in bodies]


@given(content=st.binary(max_size=300), head=st.sampled_from([b"", b"POST / HTTP/1.1\r\nHost: x\r\n"]))
def test_random_bytes_are_refused_and_nothing_else_is_raised(content: bytes, head: bytes) -> None:
    async def read() -> None:
        http = Http1Connection(Stream(iter([head + content])), Http1Limits(max_body_bytes=1_000))
        try:
            while await http.next_request() is not None:
                await http.read_body()
                await http.respond(HTTPStatus.OK, [], b"")
        except BadRequest as refused:
            await http.respond_text(refused.status, str(refused), close=True)

    trio.run(read)
