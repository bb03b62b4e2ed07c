"""aether.js in a page of another web server; the module comes from the gateway."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import ELSEWHERE, ROOT, Run, Site, Visitors, let_in
from tests.helpers.gateway import GatewayProcess


def test_the_types_declare_what_there_is(page: Page, run: Run) -> None:
    declared = (ROOT / "aether_trio" / "client" / "browser" / "aether.d.ts").read_text()
    exported = set(re.findall(r"^export (?:declare )?(?:const|class|function) (\w+)", declared, re.MULTILINE))
    there = run(
        page, "(aether) => Object.fromEntries(Object.entries(aether).map(([name, value]) => [name, typeof value]))"
    )
    assert exported == set(there)

    def members(name: str) -> set[str]:
        found = re.search(rf"^export (?:class|interface) {name}\b.*?\{{\n(.*?)^\}}", declared, re.MULTILINE | re.DOTALL)
        assert found is not None, name
        lines = re.findall(r"^  (?:readonly )?(\w+)(?:<.*?>)?[?]?[(:]", found[1], re.MULTILINE)
        return set(lines) - {"constructor"}

    for declared_as, expression in {
        "Client": "new aether.Client({ userId: 'maya' })",
        "KeyValues": "new aether.Client({ userId: 'maya' }).kv",
        "Checkpoints": "new aether.Client({ userId: 'maya' }).checkpoints",
        "Sessions": "new aether.Client({ userId: 'maya' }).sessions",
        "AuthorityRequests": "new aether.Client({ userId: 'maya' }).authorityRequests",
        "Grants": "new aether.Client({ userId: 'maya' }).grants",
        "Tasks": "new aether.Client({ userId: 'maya' }).tasks",
        "Agents": "new aether.Client({ userId: 'maya' }).agents",
        "Message": "new aether.Message({})",
        "AetherError": "new aether.AetherError('CLOSED', 'why')",
        "Statistics": "new aether.Client({ userId: 'maya' }).statistics()",
    }.items():
        names = run(
            page,
            f"""(aether) => {{
              const one = {expression};
              const own = Object.keys(one);
              const kind = Object.getPrototypeOf(one);
              return kind === Object.prototype ? own : own.concat(Object.getOwnPropertyNames(kind));
            }}""",
        )
        assert members(declared_as) == set(names) - {"constructor"}, declared_as


def test_a_page_of_another_site_is_refused(visitors: Visitors, site: Site, gateway: GatewayProcess, run: Run) -> None:
    page = visitors.page()
    page.goto(site.address(host=ELSEWHERE))
    # It may load the module, which is public, but not connect, neither with it nor without.
    code, message = run(
        page,
        """async ({ connect }) => {
          try {
            await connect({ userId: "maya", timeoutMs: 3000 });
          } catch (error) {
            return [error.code, error.message];
          }
        }""",
    )
    assert code == "UNAVAILABLE"
    assert f"does not allow pages of http://{ELSEWHERE}" in message
    opened = page.evaluate(
        """(url) => new Promise((resolve) => {
          const socket = new WebSocket(url, "aether.v1.json");
          socket.onopen = () => resolve("open");
          socket.onclose = ({ code }) => resolve(code);
        })""",
        f"ws://{gateway.address}/v1/connect",
    )
    assert opened == 1006  # the upgrade was refused
    # The same page, under a name that is allowed, may.
    page.goto(site.address())
    assert run(page, "async ({ connect }) => (await connect({ userId: 'maya' })).state") == "open"


def test_messages_of_every_kind_arrive_as_they_were_sent_and_in_order(page: Page, run: Run) -> None:
    result = run(
        page,
        """async ({ connect, topics }) => {
          const [maya, noor] = await Promise.all([
            connect({ userId: "maya", workspace: "kinds", storage: null }),
            connect({ userId: "noor", workspace: "kinds", storage: null }),
          ]);
          const bytes = new Uint8Array(100_000).map((_, at) => at * 7);
          maya.send(noor.identity, "grüße 👋", { type: "CHAT" });
          maya.send(noor.identity, { a: [1, null] }, { type: "EVENT" });
          maya.send(noor.identity, bytes);
          maya.sendToWindow("noor", noor.windowId, bytes.subarray(3, 5));
          maya.sendToUsers("to all");
          maya.sendToUser("noor", "");
          for (let n = 0; n < 500; n += 1) maya.send(noor.identity, `${n}`);
          await maya.flush();
          const got = [];
          for await (const message of noor.messages()) if (got.push(message) === 506) break;
          const all = [got[0].text(), got[0].type, got[0].source === maya.identity, got[1].json(), got[1].type,
            got[2].payload.every((byte, at) => byte === bytes[at]) && got[2].payload.length, [...got[3].payload],
            got.slice(4, 6).map((one) => one.text()).sort()];
          const order = got.slice(6).every((one, at) => one.text() === `${at}`);
          const mine = (await maya.messages().next()).value.text();
          maya.close();
          noor.close();
          return [...all, order, mine, maya.statistics().sent, noor.statistics().buffered];
        }""",
    )
    assert result == [
        "grüße 👋", "CHAT", True, {"a": [1, None]}, "EVENT", 100_000, [21, 28], ["", "to all"], True, "to all", 506, 0,
    ]  # fmt: skip


def test_what_is_too_much_is_refused_before_it_is_sent_and_what_is_wrong_after(page: Page, run: Run) -> None:
    result = run(
        page,
        """async ({ connect, topics }) => {
          const client = await connect({ userId: "maya", workspace: "limits", storage: null, maxUnconfirmedBytes: 200_000 });
          const codes = [];
          const attempt = (what) => { try { what(); } catch (error) { codes.push(error.code); } };
          attempt(() => client.send(client.identity, "x".repeat(1024 * 1024 + 1)));
          attempt(() => { for (let n = 0; n < 30; n += 1) client.send(client.identity, "x".repeat(10_000)); });
          await client.flush();
          attempt(() => client.send(client.identity, "there is room again"));
          const told = [];
          client.addEventListener("error", ({ detail }) => told.push(detail.code));
          client.send("no such topic", "one");
          client.send("ag::limits::absent::1", "waits for it");
          client.send("zz::x", "two");
          const refused = await client.flush().catch((error) => error);
          codes.push(refused.code, refused.refusals.length, told.length);
          await client.flush();
          const kv = await client.kv.get("k").catch((error) => error);
          codes.push(kv.name, kv.code);
          client.close();
          attempt(() => client.send(client.identity, "too late"));
          codes.push((await client.flush().catch((error) => error)).code);
          codes.push((await client.request({ session_op: { op: "LIST" } }).catch((error) => error)).code);
          return codes;
        }""",
    )
    assert result[:2] == ["PAYLOAD_TOO_LARGE", "BUFFER_FULL"]
    assert result[2].startswith("ERR_")
    assert result[3:5] == [2, 2]
    assert result[5:] == ["AetherError", "KV_ERROR", "CLOSED", "CLOSED", "CLOSED"]


def test_operations(page: Page, run: Run) -> None:
    result = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", workspace: "operations", storage: null });
          const { checkpoints } = client;
          await checkpoints.save("draft", { text: "half a" });
          const draft = JSON.parse(new TextDecoder().decode(await checkpoints.load("draft")));
          const keys = await checkpoints.list();
          await checkpoints.delete("draft");
          const gone = await checkpoints.load("draft");
          const [me] = await client.sessions.list();
          const status = await client.status("user", client.identity);
          const raw = (await client.request({ session_op: { op: "LIST", filter: { workspace: "operations" } } })).session_response;
          await client.switchWorkspace("operations-2");
          const others = await client.sessions.list({ workspace: "operations" }).catch(({ code }) => code);
          const refused = await client.switchWorkspace("not * this").catch((error) => error.code);
          const { workspace, identity } = client;
          client.close();
          return { draft, keys, gone, me: me.identity === identity && me.workspace, status: status.connected,
            raw: raw.connections.length, workspace, refused, others };
        }""",
    )
    refused = result.pop("refused")
    assert refused.startswith("ERR_")
    assert result == {
        "draft": {"text": "half a"},
        "keys": ["draft"],
        "gone": None,
        "me": "operations",
        "status": True,
        "raw": 1,
        "workspace": "operations-2",
        "others": "REQUEST_FAILED",  # of another workspace only with a permission
    }


LISTEN = """async ({ connect }) => {
  window.got = [];
  window.client = await connect({ userId: "maya", workspace: "reload" });
  client.addEventListener("message", ({ detail }) => got.push(detail.text()));
  return [client.windowId, client.session.resumed];
}"""
SEND = """async ({ connect }, to, first, last) => {
  const client = await connect({ userId: "noor", workspace: "reload", storage: null });
  for (let n = first; n < last; n += 1) client.send(to, `${n}`);
  await client.flush();
  client.close();
}"""


def test_a_reloaded_page_gets_what_came_meanwhile_once(visitors: Visitors, page: Page, site: Site, run: Run) -> None:
    sender = visitors.elsewhere()
    sender.goto(site.address())
    window, resumed = run(page, LISTEN)
    assert not resumed
    run(sender, SEND, f"us::maya::{window}", 0, 20)
    page.wait_for_function("got.length >= 20")
    got = page.evaluate("got")
    page.reload()
    run(sender, SEND, f"us::maya::{window}", 20, 40)
    assert run(page, LISTEN) == [window, True]
    run(sender, SEND, f"us::maya::{window}", 40, 41)
    page.wait_for_function("got.includes('40')")
    got += page.evaluate("got")
    assert got == [str(n) for n in range(41)]
    # A copy of the tab, with a copy of its storage, is another window and takes nothing from it.
    with page.expect_popup() as opened:
        page.evaluate("window.open(location.href)")
    copy = opened.value
    copy.wait_for_load_state()
    other, resumed = run(copy, LISTEN)
    assert other != window
    assert not resumed
    assert page.evaluate("client.state") == "open"
    # After close({ forget: true }) the next client is a new window.
    copy.evaluate("client.close({ forget: true })")
    assert run(copy, LISTEN)[0] not in (window, other)


def test_a_gateway_that_is_killed_under_a_client_loses_and_repeats_nothing(
    own_gateway: Callable[..., GatewayProcess], page: Page, run: Run
) -> None:
    gateway = own_gateway()
    run(
        page,
        """async ({ connect }) => {
          window.got = [];
          window.states = [];
          const options = { workspace: "w", storage: null, maxBackoffMs: 500 };
          window.maya = await connect({ userId: "maya", ...options });
          window.noor = await connect({ userId: "noor", ...options });
          noor.addEventListener("message", ({ detail }) => got.push(Number(detail.text())));
          maya.addEventListener("state", ({ detail }) => states.push(detail.state));
          window.n = 0;
          window.ticking = setInterval(() => maya.send(noor.identity, `${n++}`), 5);
        }""",
        at=gateway,
    )
    for _ in range(2):
        reached = page.evaluate("n")
        page.wait_for_function("(reached) => got.length && got.at(-1) > reached", arg=reached)
        gateway.kill()
        page.wait_for_function("noor.state === 'reconnecting' && maya.state === 'reconnecting'")
        gateway.restart()
        page.wait_for_function("noor.state === 'open' && maya.state === 'open'")
    assert page.evaluate("(clearInterval(ticking), maya.flush())") is None
    page.wait_for_function("got.includes(n - 1)")
    got, sent = page.evaluate("[got, n]")
    assert sorted(set(got)) == list(range(sent))  # at least once
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts)  # and in order, but for what was sent again
    assert page.evaluate("[states.filter((one) => one === 'open').length, maya.statistics().reconnections]") == [2, 2]


def test_a_page_that_takes_no_messages_is_sent_what_it_has_room_for_then_all_once(page: Page, run: Run) -> None:
    buffered, here, connections, got = run(
        page,
        """async ({ connect }) => {
          const options = { workspace: "slow", storage: null };
          const slow = await connect({ userId: "slow", ...options, maxBufferedMessages: 100 });
          const quick = await connect({ userId: "quick", ...options });
          for (let n = 0; n < 3000; n += 1) {
            quick.send(slow.identity, `${n}`.padEnd(2000));
            if (n % 500 === 0) await quick.flush();
          }
          await quick.flush();
          while (slow.statistics().buffered < 100) await new Promise((resolve) => setTimeout(resolve, 5));
          const here = (await slow.status("user", slow.identity)).connected; // its requests are answered meanwhile
          const { buffered } = slow.statistics();
          const got = [];
          for await (const message of slow.messages()) {
            got.push(Number(message.text()));
            if (got.at(-1) === 2999) break;
          }
          return [buffered, here, slow.statistics().reconnections, got];
        }""",
    )
    assert (buffered, here, connections) == (100, True, 0)
    assert got == list(range(3000))


def test_a_page_is_sent_no_more_bytes_than_it_has_room_for(page: Page, run: Run) -> None:
    buffered, sizes = run(
        page,
        """async ({ connect }) => {
          const options = { workspace: "narrow", storage: null };
          const slow = await connect({ userId: "slow", ...options, maxBufferedBytes: 150_000 });
          const quick = await connect({ userId: "quick", ...options });
          for (let n = 0; n < 20; n += 1) quick.send(slow.identity, "x".repeat(100_000));
          await quick.flush();
          while (slow.statistics().buffered < 2) await new Promise((resolve) => setTimeout(resolve, 5));
          await slow.status("user", slow.identity);
          const { bufferedBytes } = slow.statistics();
          const sizes = [];
          for await (const message of slow.messages()) if (sizes.push(message.payload.length) === 20) break;
          return [bufferedBytes, sizes];
        }""",
    )
    assert buffered == 200_000  # one message more than there was room for, at most
    assert sizes == [100_000] * 20


CLOSES = [
    (1000, "closed", "CLOSED"),
    (1006, "reconnecting", "UNAVAILABLE"),
    (1008, "closed", "PERMISSION_DENIED"),
    (1009, "closed", "PAYLOAD_TOO_LARGE"),
    (1011, "reconnecting", "UNAVAILABLE"),
    (1012, "reconnecting", "UNAVAILABLE"),
    (4104, "reconnecting", "DEADLINE_EXCEEDED"),
    (4108, "reconnecting", "RESOURCE_EXHAUSTED"),
    (4114, "reconnecting", "UNAVAILABLE"),
    (4203, "closed", "INVALID_ARGUMENT"),
    (4207, "closed", "PERMISSION_DENIED"),
    (4216, "closed", "UNAUTHENTICATED"),
]


@pytest.mark.parametrize(("close_code", "state", "code"), CLOSES)
def test_close_codes(page: Page, open_client: Callable[..., None], close_code: int, state: str, code: str) -> None:
    sockets = let_in(page)
    open_client(maxBackoffMs=1)
    sockets[0].close(code=close_code, reason="because")
    page.wait_for_function("changes.length > 0")
    assert page.evaluate("changes[0]") == [state, code, close_code]
    if state == "closed":
        assert page.evaluate("client.whenOpen().catch((error) => error.code)") == code
        assert len(sockets) == 1
    else:
        page.wait_for_function("client.state === 'open'")
        assert len(sockets) == 2


def test_credentials_are_asked_for_again_at_each_connection(
    locked_gateway: Callable[..., tuple[GatewayProcess, str]], page: Page, site: Site, run: Run
) -> None:
    gateway, key = locked_gateway(allowed_origins=[site.address("")])
    urls: list[str] = []
    page.on("websocket", lambda socket: urls.append(socket.url))
    refused = run(
        page,
        """async ({ connect }, key) => {
          window.asked = 0;
          const codes = [];
          for (const credentials of [{}, { api_key: "wrong" }]) {
            codes.push((await connect({ userId: "maya", storage: null, credentials }).catch((error) => error)).code);
          }
          window.client = await connect({
            userId: "maya",
            maxBackoffMs: 500,
            credentials: async () => {
              asked += 1;
              if (asked === 2) throw new Error("the token service rests");
              return { api_key: key };
            },
          });
          return codes;
        }""",
        key,
        at=gateway,
    )
    assert set(refused) <= {"UNAUTHENTICATED", "PERMISSION_DENIED"}
    gateway.kill()
    page.wait_for_function("client.state === 'reconnecting'")
    gateway.restart()
    page.wait_for_function("client.state === 'open' && asked >= 3")
    assert all(key not in url for url in urls)
    assert key not in page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }])")
