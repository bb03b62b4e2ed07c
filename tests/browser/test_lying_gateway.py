"""What aether.js keeps and gives up when a gateway breaks the protocol."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute

from tests.browser.conftest import Run, let_in


def delivery(offset: object, topic: object = "us::maya::w", log: object = "a", text: str = "x") -> str:
    message = {"msg": {"source_topic": "ag::w::i::1", "payload": base64.b64encode(text.encode()).decode()}}
    return json.dumps({**message, "delivery": {"topic": topic, "log": log, "offset": offset}})


def test_what_no_later_connection_brings_again_takes_room_until_the_page_is_done_with_it(
    page: Page, open_client: Callable[..., None]
) -> None:
    """Broadcasts are not sent again, so they stay buffered."""
    rooms: list[int] = []
    offsets = iter(range(1, 1000))
    here = [0]
    """Deliveries of each connection."""

    def fill(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if "deliveries" in message:
            room = message["deliveries"]
            rooms.append(room["messages"])
            assert room["bytes"] <= 1000
            while room["messages"] > here[-1] - room["done"] and room["bytes"] > 0:
                here[-1] += 1
                socket.send(delivery(next(offsets), "gu::w"))

    sockets = let_in(page, fill)
    open_client(maxBackoffMs=1, maxBufferedMessages=10, maxBufferedBytes=1000)
    page.wait_for_function("client.statistics().buffered >= 10")
    for reconnections in (1, 2, 3):
        here.append(0)
        sockets[-1].close(code=1012, reason="again")
        page.wait_for_function(f"client.state === 'open' && client.statistics().reconnections === {reconnections}")
    assert page.evaluate("client.statistics().buffered") == 10
    assert rooms[:4] == [10, 0, 0, 0]
    page.evaluate(
        """async () => {
          let count = 0;
          for await (const _ of client.messages()) if ((count += 1) === 25) break;
        }"""
    )


def test_what_comes_again_is_counted_once(page: Page, open_client: Callable[..., None]) -> None:
    rooms: list[tuple[int, int]] = []
    brought: list[int] = []

    def fill(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if "deliveries" in message:
            done, room = message["deliveries"]["done"], message["deliveries"]["messages"]
            rooms.append((done, room))
            while len(brought) - done < room and len(brought) < 20:
                brought.append(0)
                socket.send(delivery(len(brought)))

    sockets = let_in(page, fill)
    open_client(maxBackoffMs=1, maxBufferedMessages=10)
    page.wait_for_function("client.statistics().buffered >= 10")
    brought.clear()
    sockets[-1].close(code=1012, reason="again")
    page.wait_for_function("client.state === 'open' && client.statistics().reconnections === 1")
    got = page.evaluate(
        """async () => {
          let count = 0;
          for await (const _ of client.messages()) if ((count += 1) === 20) break;
          return [count, client.statistics().duplicates];
        }"""
    )
    assert got[0] == 20
    page.wait_for_function("client.statistics().buffered === 0")
    while rooms[-1] != (20, 10):
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 5))")


@pytest.fixture
def lies(page: Page, open_client: Callable[..., None]) -> Callable[..., list[object]]:
    """Connect a client whose gateway then says this; give state, code, close code."""

    def say(*texts: str, **options: int) -> list[object]:
        sockets = let_in(page)
        open_client(**options)
        for text in texts:
            sockets[0].send(text)
        page.wait_for_function("changes.length > 0")
        found: list[object] = page.evaluate("changes[0]")
        return found

    return say


@pytest.mark.parametrize(
    ("option", "most", "text"), [("maxBufferedMessages", 10, "x"), ("maxBufferedBytes", 950, "x" * 100)]
)
def test_more_than_there_is_room_for_ends_the_client(
    page: Page, lies: Callable[..., list[object]], option: str, most: int, text: str
) -> None:
    told = lies(*[delivery(offset, text=text) for offset in range(1, 12)], **{option: most})
    assert told[:2] == ["closed", "PROTOCOL"]
    assert page.evaluate("client.statistics().buffered") == 10


NOWHERE = ['{"msg": {}}', '{"msg": {}, "delivery": 5}', delivery("5"), delivery(1e300), delivery(1, topic=5)]


@pytest.mark.parametrize("text", [*NOWHERE, delivery(1, log=None)])
def test_a_delivery_without_a_place_in_its_topic_ends_the_client(lies: Callable[..., list[object]], text: str) -> None:
    assert lies(text)[:2] == ["closed", "PROTOCOL"]


def test_an_error_with_a_foreign_id_is_told_and_refuses_no_send(page: Page, run: Run) -> None:
    def answer(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if "send" in message:
            socket.send(json.dumps({"error": {"code": "KV_ERROR", "request_id": "of a post"}}))
        elif "connection_status_request" in message:
            request_id = message["connection_status_request"]["request_id"]
            socket.send(json.dumps({"connection_status_response": {"ok": True, "request_id": request_id}}))

    let_in(page, answer)
    told = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          const told = [];
          client.addEventListener("error", ({ detail }) => told.push(detail.code));
          client.send("ag::w::i::1", "x");
          await client.flush();
          return told;
        }""",
    )
    assert told == ["KV_ERROR"]


def test_a_barrier_that_the_gateway_refuses_is_an_answer(page: Page, run: Run) -> None:
    """A refused request is an answer to all that was sent before it."""

    def answer(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if "connection_status_request" in message:
            request_id = message["connection_status_request"]["request_id"]
            error = {"code": "ERR_RATE_LIMITED", "retryable": True, "request_id": request_id}
            socket.send(json.dumps({"error": error}))

    let_in(page, answer)
    workspace = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          client.send("ag::w::i::1", "x");
          await client.flush();
          await client.switchWorkspace("other");
          return client.workspace;
        }""",
    )
    assert workspace == "other"


def test_offsets_are_remembered_of_the_latest_topics(page: Page, open_client: Callable[..., None]) -> None:
    sockets = let_in(page)
    open_client("window.got = 0; client.addEventListener('message', () => (got += 1));")
    for number in range(1100):
        sockets[0].send(delivery(7, f"uw::maya::{number}"))
    for number in (1099, 1098, 76):
        sockets[0].send(delivery(7, f"uw::maya::{number}"))
    sockets[0].send(delivery(7, "uw::maya::0"))
    page.wait_for_function("got >= 1101")
    assert page.evaluate("client.statistics().duplicates") == 3


@pytest.mark.parametrize(("session", "place"), [(5, "localStorage"), ("s", "localStorage"), ({}, "sessionStorage")])
def test_a_storage_with_foreign_values_costs_no_connection(page: Page, run: Run, session: object, place: str) -> None:
    states = run(
        page,
        """async ({ connect }, place, sessionId) => {
          const storage = globalThis[place];
          const first = await connect({ userId: "kept", storage });
          first.close();
          const key = Object.keys(storage).find((one) => one.endsWith(":kept"));
          for (const windowId of [first.windowId, "", "no::window", "x".repeat(1000)]) {
            storage.setItem(key, JSON.stringify([{ windowId, sessionId }]));
            sessionStorage.setItem(`${key}#tab`, windowId);
            const client = await connect({ userId: "kept", storage });
            if (client.state !== "open") throw client.state;
            client.close();
          }
          return "open";
        }""",
        place,
        session,
    )
    assert states == "open"
