"""aether.js between two connections, and what it keeps meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from playwright.sync_api import Page, WebSocketRoute

from aether_trio.client import ServiceClient, connect_sync
from tests.browser.conftest import LIMIT_MS, Run, Site, Visitors, let_in
from tests.helpers.gateway import GatewayProcess


def test_credentials_that_never_come_cost_one_attempt(page: Page, run: Run) -> None:
    sockets = let_in(page)
    run(
        page,
        """async ({ connect }) => {
          window.asked = 0;
          window.late = null;
          const real = window.setTimeout;
          window.setTimeout = (call, ms) => {
            if (ms === 3600_000) window.runOut = call;
            return real(call, ms);
          };
          window.client = await connect({
            userId: "maya", storage: null, maxBackoffMs: 1, attemptTimeoutMs: 3600_000,
            credentials: () => (asked += 1) === 2 ? new Promise((resolve) => (late = resolve)) : {},
          });
          window.states = [];
          client.addEventListener("state", ({ detail }) => states.push(`${detail.state} ${detail.error?.code}`));
        }""",
    )
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("late !== null")
    # That attempt has taken too long; how long the others take is the machine's business.
    page.evaluate("runOut()")
    page.wait_for_function("client.state === 'open' && asked >= 3")
    assert "reconnecting TIMEOUT" in page.evaluate("states")
    # Credentials that come late open no further connection.
    page.evaluate("late({})")
    page.evaluate("new Promise((resolve) => setTimeout(resolve))")
    assert len(sockets) == 2


def test_a_dead_network_is_noticed_when_the_clock_is_set_back(page: Page, open_client: Callable[..., None]) -> None:
    let_in(page)
    open_client("const now = Date.now; Date.now = () => now() - 3600_000;", heartbeatMs=100, silenceMs=100)
    page.wait_for_function("changes.length > 0")
    assert page.evaluate("changes[0]") == ["reconnecting", "TIMEOUT", 0]


def test_a_clock_that_is_set_forward_costs_no_patience_with_our_own_dead_connection(
    page: Page, open_client: Callable[..., None]
) -> None:
    sockets = let_in(page, refused={1})
    open_client(
        """client.addEventListener("state", ({ detail }) => {
          const now = Date.now;
          if (detail.error?.closeCode === 1012) Date.now = () => now() + 3600_000;
        });""",
        maxBackoffMs=1,
    )
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("changes.length >= 3 || client.state === 'closed'")
    assert page.evaluate("changes") == [
        ["reconnecting", "UNAVAILABLE", 1012],
        ["reconnecting", "ALREADY_EXISTS", 4206],
        ["open", "", 0],
    ]


def test_a_hidden_page_comes_back_with_the_network(page: Page, open_client: Callable[..., None]) -> None:
    sockets = let_in(page)
    open_client(
        """Math.random = () => 1e6; // the next try would be in days
        Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true });"""
    )
    sockets[0].close(code=1012, reason="again")
    page.wait_for_function("client.state === 'reconnecting'")
    # It was hidden: no reason to hurry.
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
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


def test_a_send_that_was_refused_is_not_sent_again_after_a_cut(page: Page, gateway: GatewayProcess, run: Run) -> None:
    """Its page has been told that it is not delivered."""
    sockets: list[WebSocketRoute] = []

    def serve(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        if len(sockets) > 1:
            socket.connect_to_server()
            return
        server = socket.connect_to_server()
        cut = False

        def pass_on(text: str | bytes) -> None:
            nonlocal cut
            if cut:
                return
            socket.send(text)
            if "error" in json.loads(text):
                cut = True
                socket.close(code=1012, reason="the answer that would confirm what was sent never comes")

        server.on_message(pass_on)

    page.route_web_socket(re.compile("/v1/connect"), serve)
    run(
        page,
        """async ({ connect }) => {
          window.told = [];
          window.client = await connect({ userId: "maya", workspace: "w", storage: null });
          client.addEventListener("error", ({ detail }) => told.push(detail.code));
          Math.random = () => 1e6; // the next try would be in days
          client.sendToService("late", "", "refused");
        }""",
    )
    page.wait_for_function("client.state === 'reconnecting'")
    assert len(page.evaluate("told")) == 1
    assert page.evaluate("client.statistics().unconfirmed") == 0
    with connect_sync(f"aether://{gateway.address}", ServiceClient, implementation="late", specifier="1") as late:
        count = page.evaluate("(client.reconnectNow(), client.flush().catch((error) => error.refusalCount))")
        assert count == 1
        page.evaluate("(client.sendToService('late', '', 'afterwards'), client.flush())")
        assert late.receive(LIMIT_MS / 1000).text == "afterwards"
    assert len(page.evaluate("told")) == 1


SEND = """async ({ connect }, to, first, last) => {
  const client = await connect({ userId: "noor", workspace: "stall", storage: null });
  for (let n = first; n < last; n += 1) client.send(to, `${n}`);
  await client.flush();
  client.close();
}"""


def test_what_a_page_has_received_and_not_handled_comes_again_after_a_reload(
    visitors: Visitors, page: Page, site: Site, run: Run
) -> None:
    sender = visitors.elsewhere()
    sender.goto(site.address())
    window = run(
        page,
        """async ({ connect }) => {
          window.client = await connect({ userId: "maya", workspace: "stall" });
          return client.windowId;
        }""",
    )
    run(sender, SEND, f"us::maya::{window}", 0, 30)
    page.wait_for_function("client.statistics().buffered === 30")
    handled = page.evaluate(
        """async () => {
          const got = [];
          for await (const message of client.messages()) if (got.push(Number(message.text())) === 10) break;
          await client.sessions.list(); // an answer is a barrier: what was acknowledged in front of it is known
          return got;
        }"""
    )
    page.reload()
    again = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", workspace: "stall" });
          const got = [];
          for await (const message of client.messages()) if (got.push(Number(message.text())) === 20) break;
          return got;
        }""",
    )
    assert handled + again == list(range(30))


def test_the_messages_of_a_gateway_that_has_forgotten_everything_are_new(
    own_gateway: Callable[..., GatewayProcess], page: Page, run: Run
) -> None:
    gateway = own_gateway(ephemeral=True)
    run(
        page,
        """async ({ connect }) => {
          window.got = [];
          const options = { workspace: "w", storage: null, maxBackoffMs: 100, windowId: "w1" };
          window.maya = await connect({ userId: "maya", ...options });
          window.noor = await connect({ userId: "noor", ...options });
          noor.addEventListener("message", ({ detail }) => got.push(detail.text()));
          maya.send(noor.identity, "tick");
          await maya.flush();
        }""",
        at=gateway,
    )
    page.wait_for_function("got.length === 1")
    gateway.kill()
    page.wait_for_function("noor.state === 'reconnecting' && maya.state === 'reconnecting'")
    gateway.restart()
    page.wait_for_function("noor.state === 'open' && maya.state === 'open'")
    page.evaluate("(maya.send(noor.identity, 'tick'), maya.flush())")
    page.wait_for_function("got.length === 2")


def test_fresh_credentials_are_shown_in_the_open_connection(page: Page, run: Run) -> None:
    """Each end is renewed; a refusal is told, and the connection goes on."""
    shown: list[dict[str, str]] = []

    def serve(socket: WebSocketRoute) -> None:
        def read(text: str | bytes) -> None:
            message = json.loads(text)
            if "init" not in message:
                return
            shown.append(message["init"])
            number = len(shown)
            ending = {"uri": "urn:aether-trio:credential-renewal", "version": "500", "supported": number != 2}
            if number == 2:
                ending |= {"version": "100", "rejection_reason": "UNAVAILABLE: not now"}
            elif number > 2:
                ending["version"] = "90000000"
            socket.send(json.dumps({"connection_ack": {"session_id": "s", "negotiated_extensions": [ending]}}))

        socket.on_message(read)

    page.route_web_socket(re.compile("/v1/connect"), serve)
    run(
        page,
        """async ({ connect }) => {
          window.asked = 0;
          window.errors = [];
          window.client = await connect({
            userId: "maya", storage: null, credentials: async () => ({ bearer_token: `t${asked += 1}` }),
          });
          client.addEventListener("error", ({ detail }) => errors.push(`${detail.code} ${detail.message}`));
        }""",
    )
    page.wait_for_function("asked === 3")
    page.evaluate("new Promise((resolve) => setTimeout(resolve))")
    assert page.evaluate("client.state") == "open"
    assert page.evaluate("errors") == ["UNAUTHENTICATED the session was not renewed: UNAVAILABLE: not now"]
    assert [one["credentials"] for one in shown] == [{"bearer_token": f"t{number}"} for number in (1, 2, 3)]
    assert ["user" in one for one in shown] == [True, False, False]
