"""An ASGI application on the HTTP/1.1 server, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.transport.http1.asgi import AsgiApplication, AsgiHost, LifespanFailed, Receive, Scope, Send
from tests.transport.http1.harness import Client, Served, serving


class App:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.disconnected = trio.Event()
        self.first_part = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await getattr(self, scope["path"].strip("/") or "describe")(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        for kind in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{kind}"
            self.events.append(kind)
            scope["state"]["greeting"] = "hello"
            await send({"type": f"lifespan.{kind}.complete"})

    async def describe(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = {key: value.decode() if isinstance(value, bytes) else value for key, value in scope.items()}
        shown["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        await answer(send, json.dumps(shown).encode())

    async def echo(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-kind", b"echo")]})
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            more = message["more_body"]
            self.first_part.set()
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    async def sized(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """A response in two parts whose length is said."""
        headers = [(b"content-length", b"6"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 299, "headers": headers})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"def"})

    async def wait(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Waits until the client has gone."""
        assert (await receive()) == {"type": "http.request", "body": b"", "more_body": False}
        assert (await receive()) == {"type": "http.disconnect"}
        with pytest.raises(OSError, match="gone"):
            await answer(send, b"too late")
        self.disconnected.set()

    async def watch(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Watches the client while it answers, as Starlette does."""
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_disconnect, receive)
            await trio.testing.wait_all_tasks_blocked()
            await answer(send, b"watched")

    async def _until_disconnect(self, receive: Receive) -> None:
        assert (await receive())["type"] == "http.disconnect"

    async def read(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the whole body before it answers."""
        while (await receive())["more_body"]:
            pass
        await answer(send, b"read")

    async def ignore(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"ignored")

    async def raises(self, _scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret detail")

    async def raises_late(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ZeroDivisionError("secret detail")

    async def silent(self, _scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def confused(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"without a start"})


async def answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def hosting(app: AsgiApplication, **limits: Any) -> AsyncIterator[Served]:
    host = AsgiHost(app, root_path="/api")
    answer_ = host.answer_on(client=("192.0.2.7", 1234), server=("192.0.2.1", 80))
    async with host.running(), serving(answer_, **{"max_body_bytes": 1_000_000, **limits}) as served:
        yield served


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def client(app: App) -> AsyncIterator[Client]:
    async with hosting(app) as served, served.connect() as opened:
        yield opened


async def test_an_application_sees_the_request_as_the_specification_says(client: Client) -> None:
    _, _, body = await client.ask("/describe?a=%20b&c", X_One="1")
    scope = json.loads(body)
    assert scope.pop("headers") == [["host", "localhost"], ["x-one", "1"]]
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/describe",
        "raw_path": "/describe",
        "query_string": "a=%20b&c",
        "root_path": "/api",
        "client": ["192.0.2.7", 1234],
        "server": ["192.0.2.1", 80],
        "state": {"greeting": "hello"},
    }


async def test_its_lifespan_surrounds_the_requests() -> None:
    app = App()
    async with hosting(app) as served, served.connect() as client:
        assert app.events == ["startup"]
        assert (await client.ask("/ignore"))[0] == 200
    assert app.events == ["startup", "shutdown"]


async def test_an_application_without_a_lifespan_is_served() -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await answer(send, b"plain")

    async with hosting(plain) as served, served.connect() as client:
        assert (await client.ask())[2] == b"plain"


async def test_an_application_that_cannot_start_says_why() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(ExceptionGroup) as caught:
        async with hosting(failing):
            pytest.fail("it runs")
    assert caught.group_contains(LifespanFailed, match="no database")


async def test_bodies_go_through_in_both_directions_and_the_connection_lives_on(client: Client) -> None:
    for body in (b"x" * 300_000, [b"a" * 100_000, b"b"], b""):
        status, headers, got = await client.ask("/echo", "POST", body)
        assert (status, headers["x-kind"]) == (201, "echo")
        assert got == (b"".join(body) if isinstance(body, list) else body)
    status, headers, got = await client.ask("/sized")
    assert (status, headers["content-length"], got) == (299, "6", b"abcdef")
    status, headers, got = await client.ask("/ignore")
    assert (headers["content-length"], got) == ("7", b"ignored"), "a response in one part has its length"
    assert (await client.ask("/ignore", "HEAD"))[::2] == (200, b"")
    assert (await client.ask("/sized", "HEAD"))[::2] == (299, b"")


async def test_a_body_is_read_as_the_application_asks_for_it(app: App, client: Client) -> None:
    await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
    await app.first_part.wait()
    received = b""
    while not received.endswith(b"5\r\nfirst\r\n"):
        received += await client.stream.receive_some()
    await client.send(b"other")
    assert b"5\r\nother\r\n" in await client.stream.receive_some()


async def test_an_application_hears_that_the_client_has_gone() -> None:
    app = App()
    async with hosting(app) as served:
        async with served.connect() as client:
            await client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(300):
            await app.disconnected.wait()


async def test_watching_the_client_neither_loses_requests_sent_ahead_nor_outlives_the_response(client: Client) -> None:
    assert (await client.ask("/watch"))[2] == b"watched"
    await client.send(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\nGET /ignore HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b""
    while not received.endswith(b"ignored"):
        received += await client.stream.receive_some()
    assert b"watched" in received


async def test_a_body_that_the_application_does_not_read_ends_the_connection_after_the_answer(client: Client) -> None:
    await client.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
    received = await client.rest()
    assert b"Connection: close" in received
    assert received.endswith(b"ignored")


@pytest.mark.parametrize(
    ("path", "what"), [("raises", "failed at"), ("silent", "without a"), ("confused", "failed at")]
)
async def test_an_application_mistake_is_logged(path: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(App()) as served, served.connect() as client:
        assert (await client.ask(f"/{path}"))[::2] == (500, b"Internal Server Error\n")
        assert await client.rest() == b""
    assert what in caplog.text


async def test_a_response_that_breaks_off_is_seen_to_be_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(App()) as served, served.connect() as client:
        await client.send(b"GET /raises_late HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await client.rest()
        assert received.endswith(b"5\r\nbegun\r\n")  # and not the last chunk
    assert "failed at GET /raises_late" in caplog.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"Content-Length: 20\r\n\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n\r\n14\r\n" + b"x" * 20 + b"\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"Content-Length: 5\r\n\r\nslow", 408),
    ],
)
async def test_limits_hold_whatever_the_application_does(sent: bytes, status: int) -> None:
    async with hosting(App(), max_body_bytes=10, body_timeout_s=0.1) as served, served.connect() as client:
        await client.send(b"POST /read HTTP/1.1\r\nHost: x\r\n" + sent)
        assert (await client.rest()).startswith(b"HTTP/1.1 %d " % status)
    assert [int(error.status) for error in served.refused] == [status]
