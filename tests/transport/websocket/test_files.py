"""Files over HTTP/1.1: what is served, and what is not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.transport.http1 import static_files
from aether_trio.transport.http1.static_files import StaticFile
from aether_trio.transport.link import Link
from aether_trio.transport.websocket import server
from tests.transport.http1.harness import Client
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


@pytest.fixture
async def browser(transport: TransportServer) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream(*transport.address) as stream:
        yield Client(stream)


async def test_one_connection_serves_many_requests(browser: Client) -> None:
    assert (await browser.ask("/"))[::2] == (200, PAGE.body)
    assert (await browser.ask("/nothing"))[::2] == (404, b"there is nothing at this address\n")
    status, headers, body = await browser.ask("/demo/big")
    assert (status, body, headers["content-length"]) == (200, BIG.body, "3000000")


async def test_a_query_does_not_matter_for_a_file(browser: Client) -> None:
    assert (await browser.ask("/?workspace=prod"))[0] == 200


async def test_head_has_the_headers_and_no_body(browser: Client) -> None:
    status, headers, body = await browser.ask("/demo/big", "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "3000000")
    assert (await browser.ask("/nothing", "HEAD"))[::2] == (404, b"")
    assert (await browser.ask("/"))[2] == PAGE.body


async def test_a_copy_that_is_still_good(browser: Client) -> None:
    assert (await browser.ask("/demo/big", If_None_Match='"old", W/"big"'))[::2] == (304, b"")
    assert (await browser.ask("/demo/big", If_None_Match="*"))[0] == 304
    assert (await browser.ask("/", If_None_Match='"old"'))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods(browser: Client, method: str) -> None:
    status, headers, body = await browser.ask("/", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert b"GET, HEAD" in body


async def test_a_head_of_just_the_length_that_is_allowed(browser: Client) -> None:
    assert (await browser.ask("/", cookie="c" * 16_000))[0] == 200


async def test_a_body_is_refused_even_with_head(browser: Client) -> None:
    await browser.send(b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 413 [^\0]*\r\n\r\n", await browser.rest())


async def test_nonsense_behind_a_head_is_answered_with_a_body(browser: Client) -> None:
    assert (await browser.ask("/", "HEAD"))[0] == 200
    await browser.send(b"nonsense\r\n\r\n")
    head, _, body = (await browser.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d" % len(body) in head
    assert body


async def test_silence_after_a_request_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "load_files", lambda *, page: {"/": PAGE})
    async with (
        open_transport(no_link, idle_timeout_s=0.05) as transport,
        await trio.open_tcp_stream(*transport.address) as stream,
    ):
        browser = Client(stream)
        assert (await browser.ask("/"))[0] == 200
        assert await browser.rest() == b""


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
async def test_nothing_else_can_be_reached(browser: Client, path: str) -> None:
    assert (await browser.ask(path))[0] == 404


# -- draining --------------------------------------------------------------------------------------


async def test_a_drain_ends_file_connections_and_refuses_upgrades(transport: TransportServer, browser: Client) -> None:
    assert (await browser.ask("/"))[0] == 200
    async with await trio.open_tcp_stream(*transport.address) as late:
        await late.send_all(b"GET / HT")
        with trio.fail_after(300):
            while transport.server.statistics().fetching < 2:
                await trio.sleep(0.001)
        with trio.fail_after(300):
            await transport.server.drain(20)
        assert await browser.rest() == b""
    with pytest.raises(Rejected) as caught:
        async with open_socket(transport):
            pass
    assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
