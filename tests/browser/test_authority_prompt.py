"""The prompt for authority: an agent asks, a person approves less in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, WebSocketRoute, expect

from aether_trio.client import AgentClient, InvalidArgument, PermissionDenied, UserClient, connect_sync
from aether_trio.client.blocking.client import SyncClient
from aether_trio.client.operations import AccessLevel, Principal, ResourceScope, on_behalf_of
from aether_trio.client.operations.requests import AuthorityRequest, AuthorityRoute, AuthorityWish
from aether_trio.wire.browser.json_mapping import MapConverter
from aether_trio.wire.pb import aether_pb2 as pb
from tests.browser.conftest import ELSEWHERE, Run, Site, Visitors, let_in
from tests.helpers.gateway import GatewayProcess

Planner = SyncClient[AgentClient]


@pytest.fixture
def workspace(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name.removeprefix("test_"))[:40].strip("-")


@pytest.fixture
def planner(gateway: GatewayProcess, workspace: str) -> Iterator[Planner]:
    with agent_of(gateway, workspace) as agent:
        yield agent


@contextmanager
def agent_of(gateway: GatewayProcess, workspace: str) -> Iterator[Planner]:
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace=workspace, implementation="planner", specifier="1") as agent:
        yield agent


@pytest.fixture
def person(workspace: str) -> str:
    """A user of this test alone."""
    return f"maya-{workspace}"


def come_in(gateway: GatewayProcess, page: Page, person: str, workspace: str) -> Page:
    page.goto(f"http://{gateway.address}/")
    page.get_by_label("Your name").fill(person)
    page.locator("#workspace").fill(workspace)
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_attached()
    return page


def ask(planner: Planner, person: str, **wish: Any) -> AuthorityRequest:
    wish = {
        "requested_access_level": AccessLevel.MANAGE,
        "requested_duration_s": 600,
        "route": AuthorityRoute(principal=Principal.user(person)),
        "reason": "to look at the deployment",
        **wish,
    }
    return planner.authority_requests.create(AuthorityWish(target_subject=Principal.user(person), **wish))


def prompt(page: Page) -> Locator:
    return page.get_by_role("dialog", name=re.compile("asks to act for"))


def listed(page: Page) -> Locator:
    return page.locator("#requests").get_by_role("button")


def notice(page: Page) -> Locator:
    return page.locator("#authority-notice")


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => { const one = document.activeElement; return one.labels?.[0]?.textContent || one.textContent }"
        )
        if focused.startswith(name):
            return
    raise AssertionError(f"no {name!r} is reached with Tab")


def violations(page: Page) -> list[str]:
    """What axe-core finds on the page."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]


def test_two_windows_a_person_approves_less_by_keyboard_and_a_revoke_stops_it(
    gateway: GatewayProcess, visitors: Visitors, planner: Planner, person: str, workspace: str
) -> None:
    first = come_in(gateway, visitors.page(), person, workspace)
    second = come_in(gateway, visitors.elsewhere(), person, workspace)
    request = ask(planner, person, workspace_scope=(workspace, "elsewhere"), operation_scope=("kv_read", "kv_write"))
    for page in (first, second):
        expect(prompt(page)).to_be_visible()
        expect(prompt(page)).to_contain_text(f"agent ag::{workspace}::planner::1")
        expect(prompt(page).get_by_label("Its own words", exact=True)).to_have_text("to look at the deployment")
    first.bring_to_front()
    # No choice has the focus: neither Enter nor a space decides.
    expect(first.locator("#authority-title")).to_be_focused()
    expect(first.get_by_role("button", name="Approve", exact=True)).to_be_enabled()
    first.keyboard.press("Enter")
    first.keyboard.press("Space")
    expect(prompt(first)).to_be_visible()
    assert planner.authority_requests.get(request.request_id).status.name == "PENDING"
    assert violations(first) == []

    tab_to(first, "manage (as asked)")
    first.keyboard.press("ArrowUp")
    first.keyboard.press("ArrowUp")
    expect(first.get_by_role("radio", name="read", exact=True)).to_be_checked()
    tab_to(first, "kv_write")
    first.keyboard.press("Space")
    tab_to(first, "elsewhere")
    first.keyboard.press("Space")
    tab_to(first, "From the approval on")
    first.keyboard.press("ArrowUp")
    tab_to(first, "Approve")
    first.keyboard.press("Enter")

    for page in (first, second):
        expect(prompt(page)).to_be_hidden()
        expect(listed(page)).to_have_count(0)
        expect(notice(page)).to_contain_text(
            f"Approved. planner may act for you ({person}): read, in {workspace}, by kv_read"
        )
    window = first.locator("#me-window").text_content()
    expect(notice(second)).to_contain_text(f"(window {window})")
    assert violations(second) == []

    decided = planner.authority_requests.get(request.request_id)
    grant = planner.grants.get(decided.granted_grant_id)
    assert (grant.workspace_scope, grant.operation_scope, grant.max_access_level) == (
        (workspace,),
        ("kv_read",),
        AccessLevel.READ,
    )
    assert grant.expires_at is not None
    assert grant.created_at is not None
    assert (grant.expires_at - grant.created_at).total_seconds() == 300

    with connect_sync(f"aether://{gateway.address}", UserClient, user_id="admin", window_id="rules") as admin:
        admin.rules.grant("user", person, "kv_scope", "workspace", AccessLevel.READWRITE)
    acting = on_behalf_of(Principal.user(person), grant=decided.granted_grant_id)
    planner.kv.put("plan", b"up at seven")
    assert planner.kv.get("plan", authorization=acting) == b"up at seven"
    with pytest.raises(PermissionDenied):
        planner.kv.put("plan", b"up at nine", authorization=acting)
    with pytest.raises(PermissionDenied):
        planner.kv.get("plan", workspace="elsewhere", authorization=acting)

    second.bring_to_front()
    second.reload()  # what was granted is listed, also later
    expect(second.locator("#grants")).to_contain_text(f"planner: read, in {workspace}, by kv_read, until")
    second.get_by_role("button", name="Stop planner").focus()
    second.keyboard.press("Enter")
    expect(notice(second)).to_have_text(re.compile("Stopped. The grant is revoked, everywhere."))
    expect(second.get_by_role("button", name="Stop planner")).to_have_count(0)
    assert planner.grants.get(decided.granted_grant_id).revoked
    with pytest.raises(PermissionDenied):
        planner.kv.get("plan", authorization=acting)


def test_escape_decides_nothing_and_the_request_stays_listed_until_it_is_denied(
    gateway: GatewayProcess, visitors: Visitors, planner: Planner, person: str, workspace: str
) -> None:
    first = come_in(gateway, visitors.page(), person, workspace)
    second = come_in(gateway, visitors.elsewhere(), person, workspace)
    request = ask(planner, person)
    expect(prompt(second)).to_be_visible()
    first.bring_to_front()
    expect(prompt(first)).to_be_visible()
    first.keyboard.press("Escape")
    expect(prompt(first)).to_be_hidden()
    expect(listed(first)).to_have_count(1)
    assert planner.authority_requests.get(request.request_id).status.name == "PENDING"
    first.reload()
    expect(prompt(first)).to_be_visible()  # a window that is loaded again asks again
    first.keyboard.press("Escape")
    listed(first).focus()
    first.keyboard.press("Enter")
    expect(first.get_by_role("button", name="Deny", exact=True)).to_be_enabled()
    tab_to(first, "Your answer to it")
    first.keyboard.type("not today")
    first.keyboard.press("Enter")  # an end of the line is no decision
    expect(prompt(first)).to_be_visible()
    tab_to(first, "Deny")
    first.keyboard.press("Enter")
    for page in (first, second):
        expect(prompt(page)).to_be_hidden()
        expect(listed(page)).to_have_count(0)
        expect(notice(page)).to_contain_text("Denied. planner may not act")
        expect(notice(page)).to_contain_text("not today (window")
    found = planner.authority_requests.get(request.request_id)
    assert (found.status.name, found.granted_grant_id) == ("DENIED", "")


def test_a_request_that_is_withdrawn_or_expires_vanishes_and_the_next_one_is_shown(
    gateway: GatewayProcess, visitors: Visitors, planner: Planner, person: str, workspace: str
) -> None:
    page = visitors.page()
    page.clock.install()
    come_in(gateway, page, person, workspace)
    withdrawn = ask(planner, person, reason="the first")
    expect(prompt(page)).to_contain_text("the first")
    ask(planner, person, reason="the second")
    expect(listed(page)).to_have_count(2)
    planner.authority_requests.cancel(withdrawn.request_id)
    expect(prompt(page)).to_contain_text("the second")
    expect(listed(page)).to_have_count(1)
    page.clock.fast_forward(31 * 60_000)
    expect(prompt(page)).to_be_hidden()
    expect(listed(page)).to_have_count(0)


def test_each_part_can_be_narrowed_and_nothing_left_is_no_approval(
    gateway: GatewayProcess, visitors: Visitors, planner: Planner, person: str, workspace: str
) -> None:
    page = come_in(gateway, visitors.page(), person, workspace)
    request = ask(
        planner,
        person,
        operation_scope=("kv_*",),
        resource_scope=(
            ResourceScope(resource_type="task", patterns=("1", "2")),
            ResourceScope(resource_type="kv_scope"),
        ),
    )
    approve = page.get_by_role("button", name="Approve", exact=True)
    page.get_by_role("checkbox", name="kv_*").uncheck()
    approve.click()
    expect(page.get_by_role("alert").filter(has_text="Nothing is left")).to_be_visible()
    assert planner.authority_requests.get(request.request_id).status.name == "PENDING"
    page.get_by_role("checkbox", name="kv_*").check()
    page.get_by_label("Of kv_* only").fill("kv_read\nsend_message")
    workspaces = page.get_by_role("group", name="In which workspaces")
    workspaces.get_by_label("Only").fill("prod")
    page.get_by_role("checkbox", name="task:2").uncheck()
    page.get_by_label("Of kv_scope: only").fill("kv_scope:workspace")
    approve.click()
    expect(prompt(page)).to_be_hidden()
    expect(notice(page)).to_contain_text("Approved")
    grant = planner.grants.get(planner.authority_requests.get(request.request_id).granted_grant_id)
    # No wider than asked: "send_message" is not in "kv_*".
    assert (grant.workspace_scope, grant.operation_scope) == (("prod",), ("kv_read",))
    assert {one.resource_type: one.patterns for one in grant.resource_scope} == {
        "task": ("1",),
        "kv_scope": ("workspace",),
    }


MARKUP = (
    "<b id=bold>bold</b><img src=x onerror='window.ran=1'><script>window.ran=1</script></blockquote></dialog>"
    "<button>Approve</button>\n[a link](javascript:window.ran=1)\u202eevorppa\u2066\u200b\ufeff e" + "\u0301" * 60
)


def test_reason_markup_has_no_effect(
    gateway: GatewayProcess, visitors: Visitors, planner: Planner, person: str, workspace: str
) -> None:
    page = come_in(gateway, visitors.page(), person, workspace)
    with pytest.raises(InvalidArgument, match="4096 are allowed"):
        ask(planner, person, reason="x" * 10_000)
    with pytest.raises(InvalidArgument, match="control character"):
        ask(planner, person, reason="\x1b[2J")
    ask(planner, person, reason=MARKUP + "\n" * 900 + "x" * 2500, metadata={MARKUP: "y" * 10_000, "\x07": MARKUP})
    expect(prompt(page)).to_be_visible()
    box = page.locator("#authority-words-box")
    expect(box).to_contain_text("<script>window.ran=1</script>")
    expect(box).to_contain_text("⟨U+202E⟩evorppa⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩")
    expect(box).to_contain_text("⟨U+0007⟩")
    expect(box).to_contain_text("more characters)")
    for tag in ("b", "img", "script", "a", "button"):
        expect(page.locator(f"#authority-dialog {tag}").filter(has_text="bold")).to_have_count(0)
        expect(box.locator(tag)).to_have_count(0)
    assert page.evaluate("window.ran") is None
    expect(prompt(page).get_by_role("button", name="Approve", exact=True)).to_have_count(1)
    text = box.evaluate("(one) => one.textContent")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f]|\u0301{5}", text)
    assert len(text) < 4000
    # The choices are not pushed out of reach.
    assert box.evaluate("(one) => one.offsetHeight") < 500
    assert violations(page) == []


def test_clickjacking_a_page_of_another_origin_cannot_frame_it(
    gateway: GatewayProcess, visitors: Visitors, site: Site
) -> None:
    answer = visitors.context().request.get(f"http://{gateway.address}/")
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    site.put("/frame.html", f"<!doctype html><iframe src='http://{gateway.address}/'></iframe>")
    for host in (ELSEWHERE, "127.0.0.1"):
        page = visitors.page()
        page.goto(site.address("/frame.html", host))
        frame = page.frames[1]
        frame.wait_for_load_state()
        assert frame.locator("#enter").count() == 0
        assert frame.url.startswith("chrome-error:")
    visitors.problems.clear()  # the browser has said that the policy forbids it


def test_the_window_that_was_slower_says_what_was_decided(
    gateway: GatewayProcess, visitors: Visitors, person: str, workspace: str
) -> None:
    request = {
        "request_id": "r1",
        "status": "AUTHORITY_REQUEST_STATUS_PENDING",
        "requesting_actor": {"principal_type": "agent", "principal_id": "ag::prod::planner::1"},
        "requested_access_level": "ACCESS_LEVEL_READ",
        "requested_duration_seconds": "600",
    }
    denied = {"status": "AUTHORITY_REQUEST_STATUS_DENIED", "resolution_reason": "no (window 1234)"}

    def answer(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        name, asked = next(iter(message.items()))
        told: dict[str, Any] = {"success": True, "ok": True}
        if name != "authority_request_op":
            told["request_id"] = asked.get("request_id", "")
            name = {"connection_status_request": "connection_status_response", "session_op": "session_response"}.get(
                name, "authority_grant"
            )
        else:
            name = "authority_request_response"
            told["client_request_id"] = asked["client_request_id"]
            if asked["op"] == "LIST_PENDING":
                told["requests"] = [request]
            elif asked["op"] == "GET":
                told["request"] = {**request, **denied}
            else:
                told |= {"success": False, "error": "authority request already resolved"}
        socket.send(json.dumps({name: told}))

    page = visitors.page()
    let_in(page, answer)
    come_in(gateway, page, person, workspace)
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(prompt(page)).to_be_hidden()
    expect(notice(page)).to_contain_text("Denied. planner may not act")
    expect(notice(page)).to_contain_text("no (window 1234)")


def filled(message: Any) -> Any:
    """A message with a value in each field."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value["name"] = "value"
        elif field.message_type is not None:
            filled(value.add() if field.is_repeated else value)
        elif field.is_repeated:
            value.append(field.name if field.type == field.TYPE_STRING else 2)
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, field.name)
        else:
            setattr(message, field.name, 2)
    return message


def test_an_event_and_a_decision_have_all_fields_of_the_protocol(page: Page, run: Run) -> None:
    event = filled(pb.AuthorityRequestEvent())
    event.request.routing_target.ClearField("capability")
    said = MapConverter(json=True).to_map(pb.DownstreamMessage(authority_request_event=event))
    asked: list[Any] = []

    def answer(socket: Any, message: dict[str, Any]) -> None:
        operation = message.get("authority_request_op")
        if operation is not None:
            asked.append(operation)
            response = {"success": True, "client_request_id": operation["client_request_id"]}
            socket.send(json.dumps({"authority_request_response": response}))

    let_in(page, answer, said=[said])
    got = run(
        page,
        """async ({ Client }) => {
          const client = new Client({ userId: "maya", storage: null });
          const event = new Promise((done) => client.addEventListener("authority_request", done, { once: true }));
          await client.open();
          const { detail } = await event;
          await client.authorityRequests.approve("r1", {
            workspaceScope: ["prod"], resourceScope: [{ resourceType: "task", patterns: ["1"] }],
            operationScope: ["kv_read"], accessLevel: "READ", durationSeconds: 60, remainingHops: 1, reason: "well",
          });
          await client.authorityRequests.deny("r2", "no");
          for (const empty of ["workspaceScope", "resourceScope", "operationScope"]) {
            const refused = await client.authorityRequests.approve("r3", { [empty]: [] }).catch((error) => error.name);
            if (refused !== "TypeError") throw new Error(empty);
          }
          return JSON.parse(JSON.stringify(detail));
        }""",
    )
    principal = {"type": "principal_type", "id": "principal_id"}
    moment = "1970-01-01T00:00:02.000Z"
    assert got == {
        "type": "APPROVED",
        "emittedAt": moment,
        "request": {
            "requestId": "request_id",
            "status": "APPROVED",
            "requestingActor": principal,
            "targetSubject": principal,
            "workspaceScope": ["desired_workspace_scope"],
            "resourceScope": [{"resourceType": "resource_type", "patterns": ["patterns"]}],
            "operationScope": ["desired_operation_scope"],
            "accessLevel": "READ",
            "durationSeconds": 2,
            "audienceType": "audience_type",
            "audienceId": "audience_id",
            "route": {"principal": principal, "capability": ""},
            "reason": "reason",
            "taskId": "task_id",
            "metadata": {"name": "value"},
            "createdAt": moment,
            "expiresAt": moment,
            "resolvedAt": moment,
            "grantId": "granted_grant_id",
            "resolvedBy": principal,
            "resolutionReason": "resolution_reason",
        },
    }
    assert len(got["request"]) == len(pb.AuthorityRequest.DESCRIPTOR.fields)
    approval, denial = (one["resolve"] for one in asked)
    assert set(approval) == {field.name for field in pb.ResolveAuthorityRequestPayload.DESCRIPTOR.fields}
    assert denial == {"decision": "DENY", "reason": "no"}
