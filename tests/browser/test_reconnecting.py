"""The browser's client between two connections, and what it keeps meanwhile.

A scripted gateway stands in where a real one would not do what the test needs: it lets the client in and may say nothing more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from playwright.sync_api import Page, WebSocketRoute

from tests.browser.conftest import Run


def let_in(page: Page, answer: Callable[[WebSocketRoute, dict[str, object]], None] | None = None) -> list[WebSocketRoute]:
    """Accept each connection; `answer` is given everything behind the Init. The connections, in their order."""
    sockets: list[WebSocketRoute] = []

    def serve(socket: WebSocketRoute) -> None:
        sockets.append(socket)

        def read(text: str | bytes) -> None:
            message = json.loads(text)
            if "init" in message:
                socket.send(json.dumps({"connection_ack": {"session_id": "s"}}))
            elif answer is not None:
                answer(socket, message)

        socket.on_message(read)

    page.route_web_socket(re.compile("/v1/connect"), serve)
    return sockets


WATCH = """
  window.changes = [];
  client.addEventListener("state", ({ detail }) => changes.push([detail.state, detail.error?.code ?? ""]));
"""


def test_credentials_that_never_come_cost_one_attempt(page: Page, run: Run) -> None:
    sockets = let_in(page)
    run(
        page,
        """async ({ connect }) => {
          window.asked = 0;
          window.late = null;
          window.client = await connect({
            userId: "maya", storage: null, maxBackoffMs: 1, attemptTimeoutMs: 300,
            credentials: () => (asked += 1) === 2 ? new Promise((resolve) => (late = resolve)) : {},
          });"""
        + WATCH
        + "}",
    )
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("client.state === 'open' && asked >= 3")
    assert ["reconnecting", "TIMEOUT"] in page.evaluate("changes")
    # What comes after all opens no second connection.
    page.evaluate("late({})")
    page.evaluate("new Promise((resolve) => setTimeout(resolve))")
    assert len(sockets) == 2


def test_a_dead_network_is_noticed_when_the_clock_is_set_back(page: Page, run: Run) -> None:
    let_in(page)
    run(
        page,
        """async ({ connect }) => {
          window.client = await connect({ userId: "maya", storage: null, heartbeatMs: 100, silenceMs: 100 });
          const now = Date.now;
          Date.now = () => now() - 3600_000;"""
        + WATCH
        + "}",
    )
    page.wait_for_function("changes.length > 0")
    assert page.evaluate("changes[0]") == ["reconnecting", "TIMEOUT"]


def test_a_clock_that_is_set_forward_costs_no_patience_with_our_own_dead_connection(page: Page, run: Run) -> None:
    sockets = let_in(page)
    run(
        page,
        """async ({ connect }) => {
          window.client = await connect({ userId: "maya", storage: null, maxBackoffMs: 1 });
          client.addEventListener("state", ({ detail }) => {
            const now = Date.now;
            if (detail.error?.closeCode === 1012) Date.now = () => now() + 3600_000;
          });"""
        + WATCH
        + "}",
    )
    page.unroute_all()
    refused: list[WebSocketRoute] = []

    def refuse(socket: WebSocketRoute) -> None:
        refused.append(socket)
        if len(refused) == 1:
            socket.on_message(lambda _: socket.close(code=4206, reason="DuplicateIdentityError: it is there"))
        else:
            socket.on_message(
                lambda text: (
                    socket.send(json.dumps({"connection_ack": {"session_id": "s"}})) if '"init"' in str(text) else None
                )
            )

    page.route_web_socket(re.compile("/v1/connect"), refuse)
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("changes.length >= 3 || client.state === 'closed'")
    assert page.evaluate("changes") == [["reconnecting", "UNAVAILABLE"], ["reconnecting", "ALREADY_EXISTS"], ["open", ""]]


def test_a_hidden_page_comes_back_with_the_network(page: Page, run: Run) -> None:
    sockets = let_in(page)
    run(
        page,
        """async ({ connect }) => {
          window.client = await connect({ userId: "maya", storage: null });
          Math.random = () => 1e6; // the next try would be in days
          Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true });"""
        + WATCH
        + "}",
    )
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("client.state === 'reconnecting'")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it was hidden: no reason to hurry
    assert page.evaluate("client.state") == "reconnecting"
    page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for_function("client.state === 'open'")


def test_the_first_of_many_refusals_is_kept_and_all_are_counted(page: Page, run: Run) -> None:
    first, kept, total, again = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          client.send("no such topic", "the first");
          for (let n = 0; n < 150; n += 1) client.send("zz::x", `${n}`);
          const told = [];
          client.addEventListener("error", ({ detail }) => told.push(detail));
          const error = await client.flush().catch((one) => one);
          await client.flush();
          client.send("zz::x", "one more");
          const next = await client.flush().catch((one) => one);
          client.close();
          return [error === told[0], error.refusals.length, error.refusalCount, next.refusalCount];
        }""",
    )
    assert first
    assert kept == 100
    assert (total, again) == (151, 1)
