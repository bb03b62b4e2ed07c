"""Mistakes around aether.js: wrong calls, refused sockets, undecodable messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Run, let_in

WRONG = [
    ("client.send('ag::w::i::1', 'x', { type: 'chat' })", "type is one of"),
    ("client.send(undefined, 'x')", "topic is a string, not undefined"),
    ("client.send('ag::w::i::1', new Blob(['x']))", "a Blob has to be read first"),
    ("client.send('ag::w::i::1', Promise.resolve('x'))", "await it first"),
    ("client.send('ag::w::i::1', 'x', { appWorkspace: {} })", "appWorkspace is a string, not object"),
    ("client.post({ no_such: {}, two: {} })", "one field of UpstreamMessage"),
    ("client.request(null)", "one field of UpstreamMessage"),
    ("client.switchWorkspace(undefined)", "workspace is a string, not undefined"),
    ("client.kv.put('k', 'v', { ttlSeconds: 1.5 })", "ttlSeconds is a whole number, 0 or more, not 1.5"),
    ("client.checkpoints.save('k', 'v', { ttlSeconds: NaN })", "ttlSeconds is a whole number"),
    ("client.sessions.list({ type: 'robot' })", "type is one of agent, task"),
    ("client.sessions.list({ limit: -1 })", "limit is a whole number"),
    ("client.checkpoints.save('k', new Uint8Array(2 ** 21))", "are allowed"),
    ("new Client({ userId: 7 })", "userId is a string, not number"),
    ("new Client({ userId: 'm', url: 'aether://localhost:50051' })", "url: aether: is not http:"),
    ("new Client({ userId: 'm', url: 'localhost:50051' })", "url: localhost: is not http:"),
    ("new Client({ userId: 'm', url: 'ws://m:secret@localhost' })", "credentials are an option of their own"),
    ("new Client({ userId: 'm', url: 'ws://localhost/v1/connect?key=secret' })", "takes no"),
]


def test_what_cannot_be_right_is_said_at_once_and_costs_nothing_else(page: Page, run: Run) -> None:
    """A wrong call raises; sent, it would end the connection with all other messages."""
    result = run(
        page,
        """async ({ connect, Client }, calls) => {
          const client = await connect({ userId: "maya", workspace: "wrong", storage: null });
          const told = [];
          for (const call of calls) {
            const made = new Function("client", "Client", `return (async () => await (${call}))()`);
            told.push(await made(client, Client).then(() => "it was taken", (error) => `${error.name}: ${error.message}`));
          }
          client.send(client.identity, "half of \ud83d", { appWorkspace: "w" });
          await client.flush();
          const { value } = await client.messages().next();
          return [told, value.text(), client.state];
        }""",
        [call for call, _ in WRONG],
    )
    for (call, reason), said in zip(WRONG, result[0], strict=True):
        assert reason in said, f"{call}: {said}"
        assert said.startswith(("TypeError: ", "AetherError: the message has")), call
    assert result[1:] == ["half of \ufffd", "open"]


def test_a_request_that_ends_the_connection_is_told_why(page: Page, run: Run) -> None:
    code, message, state = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          const error = await client.request({ session_op: { opp: "LIST" } }).catch((error) => error);
          return [error.code, error.message, client.state];
        }""",
    )
    assert (code, state) == ("INVALID_ARGUMENT", "closed")
    assert message.startswith("session_op: unknown field 'opp' in SessionOperation")


def test_what_the_browser_itself_refuses_ends_the_attempt_at_once(page: Page, run: Run) -> None:
    """A page that came by https may not use ws: `new WebSocket` throws there."""
    code, message, state = run(
        page,
        """async ({ Client }) => {
          globalThis.WebSocket = class {
            constructor() { throw new DOMException("an insecure WebSocket", "SecurityError"); }
          };
          const client = new Client({ userId: "maya", storage: null, timeoutMs: 3_600_000 });
          const error = await client.open().catch((error) => error);
          return [error.code, error.message, client.state];
        }""",
    )
    assert (code, state) == ("PERMISSION_DENIED", "closed")
    assert message.startswith("the browser refuses ws://")
    assert message.endswith("an insecure WebSocket")


@pytest.mark.parametrize("text", ["null", "{", '{"msg": {"payload": "%%%"}}', '{"msg": {"payload": 7'])
def test_what_is_no_message_ends_the_client_and_is_said(page: Page, run: Run, text: str) -> None:
    let_in(page, lambda socket, message: socket.send(text) if "send" in message else None)
    code = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          client.send("ag::w::absent::1", "x");
          return await client.flush().catch((error) => error.code);
        }""",
    )
    assert code == "PROTOCOL"


def test_a_completion_that_is_no_number_is_unknown(page: Page, run: Run) -> None:
    """JSON has no NaN, so it comes as text, and <progress> throws for both."""
    updates = [{"completion": value} for value in ("NaN", "Infinity", "-Infinity", 0.5)] + [{}]

    let_in(page, said=[{"progress_update": update} for update in updates])
    assert run(
        page,
        """async ({ Client }) => {
          const client = new Client({ userId: "maya", storage: null });
          const seen = [];
          const all = new Promise((resolve) => client.addEventListener("progress", ({ detail }) => {
            if (seen.push(detail.completion) === 5) resolve();
          }));
          await client.open();
          await all;
          return seen;
        }""",
    ) == [-1, -1, -1, 0.5, 0]


def test_requests_that_timed_out_are_not_sent_after_a_reconnect(page: Page, open_client: Callable[..., None]) -> None:
    asked: list[str] = []
    sockets = let_in(page, lambda _, message: asked.extend(message))
    open_client("window.away = until(client, 'reconnecting');", maxBackoffMs=3_600_000)
    sockets[0].close(code=1012)
    page.evaluate(
        """async () => {
          await away;
          const asked = [1, 2, 3].map(() => client.request({ session_op: { op: "LIST" } }, { timeoutMs: 1 }));
          window.codes = (await Promise.allSettled(asked)).map(({ reason }) => reason.code);
          client.send("ag::w::i::1", "kept");
          const open = new Promise((resolve) => client.addEventListener("state", ({ detail }) => {
            if (detail.state === "open") resolve();
          }));
          client.reconnectNow();
          await open;
        }"""
    )
    assert page.evaluate("codes") == ["TIMEOUT"] * 3
    page.wait_for_function("client.statistics().unconfirmed === 1")
    assert asked.count("send") == 1
    assert "session_op" not in asked
