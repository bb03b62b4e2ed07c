"""Files over HTTP/1.1: what is served, and what is not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import h11
import pytest
import trio

from aether_trio.transport.http1 import static_files
from aether_trio.transport.http1.static_files import StaticFile
from aether_trio.transport.link import Link
from aether_trio.transport.websocket import server
from tests.transport.websocket.harness import Rejected, TransportServer, open_socket, open_transport

PAGE = StaticFile(b"<!doctype html>", '"page"', [("Content-Type", "text/html; charset=utf-8")])
BIG = StaticFile(b"x" * 3_000_000, '"big"', [("Content-Type", "text/plain; charset=utf-8")])


async def no_link(link: Link) -> None:
    """Serves no link."""


@pytest.fixture
async def transport(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TransportServer]:
    monkeypatch.setattr(server, "load_files", lambda *, page: {"/": PAGE, "/demo/big": BIG})
    async with open_transport(no_link) as opened:
        yield opened


class Browser:
    """One connection and what h11 understands of it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body)."""
        fields = [("Host", "localhost"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        data = self.http.send(h11.Request(method=method, target=path, headers=fields))
        await self.stream.send_all(data + self.http.send(h11.EndOfMessage()))
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        body = b""
        response: h11.Response | None = None
        with trio.fail_after(300):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    assert isinstance(event, h11.EndOfMessage)
                    break
        assert response is not None
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return response.status_code, {name.decode(): value.decode() for name, value in response.headers}, body

    async def at_its_end(self) -> bool:
        """Whether the gateway has ended the connection."""
        with trio.fail_after(300):
            return await self.stream.receive_some() == b""


@pytest.fixture
async def browser(transport: TransportServer) -> AsyncIterator[Browser]:
    async with await trio.open_tcp_stream(*transport.address) as stream:
        yield Browser(stream)


async def test_one_connection_serves_many_requests(browser: Browser) -> None:
    assert (await browser.get("/"))[::2] == (200, PAGE.body)
    assert (await browser.get("/nothing"))[::2] == (404, b"there is nothing at this address\n")
    status, headers, body = await browser.get("/demo/big")
    assert (status, body, headers["content-length"]) == (200, BIG.body, "3000000")


async def test_a_query_does_not_matter_for_a_file(browser: Browser) -> None:
    assert (await browser.get("/?workspace=prod"))[0] == 200


async def test_head_has_the_headers_and_no_body(browser: Browser) -> None:
    status, headers, body = await browser.get("/demo/big", "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "3000000")
    assert (await browser.get("/nothing", "HEAD"))[::2] == (404, b"")
    assert (await browser.get("/"))[2] == PAGE.body


async def test_a_copy_that_is_still_good(browser: Browser) -> None:
    assert (await browser.get("/demo/big", If_None_Match='"old", W/"big"'))[::2] == (304, b"")
    assert (await browser.get("/demo/big", If_None_Match="*"))[0] == 304
    assert (await browser.get("/", If_None_Match='"old"'))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods(browser: Browser, method: str) -> None:
    status, headers, body = await browser.get("/", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert b"GET, HEAD" in body


async def test_requests_sent_ahead_are_answered_in_turn(browser: Browser) -> None:
    await browser.stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    received = b""
    with trio.fail_after(300):
        while received.count(PAGE.body) < 3:
            received += await browser.stream.receive_some()
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("length", [17_000, 200_000], ids=["one read", "many reads"])
@pytest.mark.parametrize("tail", ["\r\n\r\n", ""], ids=["whole", "cut"])
async def test_a_head_that_is_too_long(browser: Browser, length: int, tail: str) -> None:
    await browser.stream.send_all(("GET / HTTP/1.1\r\nHost: x\r\nCookie: " + "c" * length + tail).encode())
    status, headers, _ = await browser.answer()
    assert status == 431
    assert headers["connection"] == "close"


async def test_a_head_of_just_the_length_that_is_allowed(browser: Browser) -> None:
    assert (await browser.get("/", cookie="c" * 16_000))[0] == 200


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.1\r\n\r\n", b"GET \x00 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"],
)
async def test_what_is_not_http(browser: Browser, request_: bytes) -> None:
    await browser.stream.send_all(request_)
    status, headers, body = await browser.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert body
    assert await browser.at_its_end()


async def test_a_body_is_refused_even_with_head(browser: Browser) -> None:
    await browser.stream.send_all(b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
    received = b""
    with trio.fail_after(300):
        while data := await browser.stream.receive_some():
            received += data
    assert re.fullmatch(rb"HTTP/1\.1 413 [^\0]*\r\n\r\n", received)


async def test_nonsense_behind_a_head_is_answered_with_a_body(browser: Browser) -> None:
    assert (await browser.get("/", "HEAD"))[0] == 200
    await browser.stream.send_all(b"nonsense\r\n\r\n")
    with trio.fail_after(300):
        answer = b"".join([part async for part in browser.stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d" % len(body) in head
    assert body


async def test_silence_after_a_request_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "load_files", lambda *, page: {"/": PAGE})
    async with (
        open_transport(no_link, idle_timeout_s=0.05) as transport,
        await trio.open_tcp_stream(*transport.address) as stream,
    ):
        browser = Browser(stream)
        assert (await browser.get("/"))[0] == 200
        assert await browser.at_its_end()


async def test_a_reader_that_never_reads_its_file_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = StaticFile(b"x" * 50_000_000, '"huge"', [])
    monkeypatch.setattr(server, "load_files", lambda *, page: {"/": huge})
    async with open_transport(no_link, handshake_timeout_s=0.1, idle_timeout_s=0.1) as transport:
        async with await trio.open_tcp_stream(*transport.address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(300):
                while transport.server.statistics().fetching or not transport.server.statistics().requests_total:
                    await trio.sleep(0.01)
        assert transport.server.statistics().requests_total == 1


# -- what is in the package ------------------------------------------------------------------------


def test_the_browsers_client_is_there_without_the_page() -> None:
    table = static_files.load_files(page=False)
    assert all(path.startswith("/client/") for path in table)


def test_the_page_is_there_when_it_is_on() -> None:
    table = static_files.load_files(page=True)
    for path, file in table.items():
        headers = dict(file.headers)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"
        if not path.startswith("/client/"):
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
        assert not path.endswith((".py", ".md"))


@pytest.mark.parametrize(
    "path",
    [
        "/client/../core.py",
        "/client/..%2fcore.py",
        "/demo/../../etc/passwd",
        "//etc/passwd",
        "/client/__init__.py",
        "/client/",
        "/demo/.hidden.js",
        "*",
    ],
)
async def test_nothing_else_can_be_reached(browser: Browser, path: str) -> None:
    assert (await browser.get(path))[0] == 404


# -- draining --------------------------------------------------------------------------------------


async def test_a_drain_ends_connections_that_fetch_files_and_refuses_upgrades(
    transport: TransportServer, browser: Browser
) -> None:
    assert (await browser.get("/"))[0] == 200
    async with await trio.open_tcp_stream(*transport.address) as late:
        await late.send_all(b"GET / HT")
        with trio.fail_after(300):
            while transport.server.statistics().fetching < 2:
                await trio.sleep(0.001)
        with trio.fail_after(300):
            await transport.server.drain(20)
        assert await browser.at_its_end()
    with pytest.raises(Rejected) as caught:
        async with open_socket(transport):
            pass
    assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
