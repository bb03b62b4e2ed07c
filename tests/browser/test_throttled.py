"""Freeze, stall, cut and reload a slow tab at random while messages arrive.

The model: at least once and in order over the loads, each offset once in the life of a page.
"""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Page

from aether_trio.client import connect_sync
from tests.browser.conftest import Run
from tests.helpers.gateway import GatewayProcess

MOVES = 14
SLOWER = 6

LIVE = """async ({ connect }) => {
  window.got = [];
  window.sockets = [];
  const Real = window.WebSocket;
  window.WebSocket = class extends Real {
    constructor(...given) {
      super(...given);
      sockets.push(this);
    }
  };
  window.client = await connect({
    userId: "slow", workspace: "throttled", heartbeatMs: 100, silenceMs: 300, maxBackoffMs: 100,
  });
  client.addEventListener("message", ({ detail }) => {
    if (detail.text() === "mine") return;
    got.push(Number(detail.text()));
    sessionStorage.setItem("got", JSON.stringify(got)); // it may be loaded again at any moment
  });
  window.tell = () => {
    client.send(`us::slow::${client.windowId}`, "mine");
    client.flush().catch(() => {});
  };
  window.stall = (ms) => {
    const until = performance.now() + ms;
    while (performance.now() < until);
  };
  return client.windowId;
}"""


@pytest.mark.parametrize("seed", [1])
def test_a_slow_page_of_chance(gateway: GatewayProcess, page: Page, run: Run, seed: int) -> None:
    chance = random.Random(seed)
    tab = page.context.new_cdp_session(page)
    tab.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    window = run(page, LIVE)
    sent = reconnections = 0
    handled = -1  # the greatest that any load of the page has handled
    with connect_sync(f"aether://{gateway.address}", workspace="throttled", implementation="i", specifier="tx") as tx:

        def check(got: list[int]) -> None:
            """All that came to one load of the page, in the order in which it came."""
            nonlocal handled
            if got:
                assert got == list(range(got[0], got[0] + len(got))), "each once, in order"
                assert got[0] <= handled + 1
                handled = max(handled, got[-1])

        def feed(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                tx.publish(f"us::slow::{window}", str(sent).ljust(200))
                sent += 1
            tx.flush()

        def frozen() -> None:
            tab.send("Page.setWebLifecycleState", {"state": "frozen"})
            feed(chance.randint(1, 100))
            tab.send("Page.setWebLifecycleState", {"state": "active"})

        def stalled() -> None:
            # Its own send and an answer that it waits for stand still with it.
            page.evaluate("(ms) => void setTimeout(() => { tell(); stall(ms) }, 10)", chance.randint(100, 1500))
            feed(chance.randint(1, 100))

        def cut() -> None:
            page.evaluate("void sockets.at(-1).close()")
            feed(chance.randint(1, 100))

        def loaded_again() -> None:
            nonlocal reconnections
            reconnections += page.evaluate("client.statistics().reconnections")
            page.reload()
            check(page.evaluate("JSON.parse(sessionStorage.getItem('got') ?? '[]')"))
            page.evaluate("sessionStorage.removeItem('got')")
            assert run(page, LIVE) == window

        feed(10)
        for move in chance.choices([frozen, stalled, cut, loaded_again], [3, 3, 3, 2], k=MOVES):
            move()
        feed(1)
        page.wait_for_function("(last) => got.includes(last)", arg=sent - 1)
        reconnections += page.evaluate("client.statistics().reconnections")
        check(page.evaluate("got"))
    assert handled == sent - 1
    assert reconnections > 0
