"""axe-core finds nothing on any state of the page: light, dark, wide and narrow.

A gateway of this test's own answers the page, so that every state is there at once and stays. With
the environment variable SCREENSHOTS, a folder, each state is also saved as a picture, to be looked
at by a person.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.conftest import Visitors, let_in
from tests.helpers.gateway import GatewayProcess

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 760}}
NOW = int(time.time())
BIDI = "\u05d0\u05d1\u05d2\u202egnp.exe"
"""A name in Hebrew, with a character that turns what follows."""


def task(number: int, kind: str, status: str, **more: object) -> dict[str, Any]:
    return {
        "task_id": f"0190c6f2-7a5e-7000-8000-00000000000{number}",
        "task_type": kind,
        "status": f"TASK_STATUS_{status}",
        "workspace": "lab",
        "assigned_to": "ag::lab::guide::1",
        "creator_actor_id": "us::noor::w7",
        "created_at": str(NOW - 600),
        "started_at": str(NOW - 540),
        "max_attempts": 3,
        **more,
    }


def waiting(number: int, kind: str, match: dict[str, str], **more: object) -> dict[str, Any]:
    spec = {"reason": "WAIT_REASON_INPUT", "input_match": match, "timeout_ms": "86400000", **more}
    return task(number, kind, "WAITING_INPUT", wait_spec=spec, paused_at=str(NOW - 60))


FORM = {
    "question": "Version 2.4.1 passed its tests.\nWhere shall it go?",
    "choices": ["staging first", "production at once", f"{BIDI} and a long one, which says what it means in full"],
    "text": "Why?",
}
DEPLOY = waiting(1, "deploy", {"_form": json.dumps(FORM)})
DEPLOY["metadata"] = {"branch": "main", "commit": "8a2aaaec"}
PAY = waiting(2, "pay", {"approved": "yes"})
SIGN = waiting(3, "sign", {"_form": json.dumps({"question": "Sign it?"})}, expected_principal="noor")
SHRINK = task(4, "shrink", "RUNNING")
REPORT = task(
    5,
    "report",
    "COMPLETED",
    completed_at=str(NOW - 5),
    metadata={"_result": json.dumps({"pages": 12, "title": "Übersicht", "parts": ["a", "b"]})},
)
CALL = task(
    6,
    "call",
    "FAILED",
    attempt=3,
    completed_at=str(NOW - 30),
    error="ConnectionError: no answer" * 3,
    metadata={"_outcome": "exhausted"},
)
LATER = task(
    7, "print", "QUEUED", assigned_to="", target_topic="printer", metadata={"_queued_because": "no worker is connected"}
)
REQUEST = {
    "request_id": "r1",
    "status": "AUTHORITY_REQUEST_STATUS_PENDING",
    "requesting_actor": {"principal_type": "agent", "principal_id": "ag::lab::planner::1"},
    "requested_access_level": "ACCESS_LEVEL_MANAGE",
    "requested_duration_seconds": "600",
    "desired_workspace_scope": ["lab", "prod"],
    "desired_operation_scope": ["kv_*"],
    "reason": "to look at the deployment",
    "metadata": {"ticket": "T-17"},
}


class Fake:
    """What the page is told; a test changes it while the page is open."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, str]] = [{"type": "PRINCIPAL_USER", "identity": "us::maya::w1"}]
        self.tasks: list[dict[str, Any]] = []
        self.registered: list[dict[str, str]] = []
        self.requests: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []

    def full(self) -> None:
        for name in ("guide", BIDI, "a-name-that-does-not-end-" * 3):
            self.sessions.append({"type": "PRINCIPAL_AGENT", "identity": f"ag::lab::{name}::1"})
        self.sessions.append({"type": "PRINCIPAL_USER", "identity": "us::noor::w7"})
        self.tasks = [DEPLOY, PAY, SIGN, SHRINK, REPORT, CALL, LATER]
        self.registered = [{"implementation": "echo", "orchestrator_profile": "process", "description": "Echoes"}]

    def answer(self, socket: WebSocketRoute, message: dict[str, Any]) -> None:
        name, asked = next(iter(message.items()))
        told: dict[str, Any] = {"success": True, "ok": True}
        match name:
            case "session_op":
                name, told["connections"] = "session_response", self.sessions
            case "connection_status_request":
                name = "connection_status_response"
            case "task_query" if asked["op"] == "GET":
                told["task"] = next(one for one in self.tasks if one["task_id"] == asked["task_id"])
            case "task_query":
                wanted = asked["filter"]["statuses"]
                told["tasks"] = [one for one in self.tasks if not wanted or one["status"] in wanted]
                if asked["filter"]["task_type"]:
                    told["tasks"] = []
            case "task_subscription_op":
                name = "task_subscription_response"
            case "agent_op":
                name, told["agents"] = "agent", self.registered
                told["orchestrators"] = [{"orchestrator_id": "orc::o::1", "profiles": ["process"]}]
            case "authority_request_op":
                name, told["requests"] = "authority_request_response", self.requests
            case "authority_grant_op":
                name = "authority_grant"
            case "send":
                self.sent.append(asked)
                return
            case _:
                return
        for key in ("request_id", "client_request_id"):
            if key in asked:
                told[key] = asked[key]
        socket.send(json.dumps({name: told}))


class Show:
    """A page with its own gateway, and the check of the state that it is in."""

    def __init__(self, page: Page, gateway: GatewayProcess) -> None:
        self.page = page
        self.fake = Fake()
        self.sockets = let_in(page, self.fake.answer)
        self._address = f"http://{gateway.address}/"
        self._folder = os.environ.get("SCREENSHOTS", "")
        self._offset = 0

    def open(self) -> Page:
        self.page.goto(self._address)
        return self.page

    def enter(self) -> Page:
        page = self.open()
        page.get_by_label("Your name").fill("maya")
        page.locator("#workspace").fill("lab")
        page.get_by_role("button", name="Enter").click()
        expect(page.locator("#app")).to_be_visible()
        return page

    def tell(self, **message: object) -> None:
        self.sockets[-1].send(json.dumps(message))

    def say(self, source: str, text: str) -> None:
        """Deliver a message to all windows of the person."""
        self._offset += 1
        delivery = {"topic": "uw::maya::lab", "log": "l", "offset": self._offset}
        self.tell(msg={"source_topic": source, "payload": base64.b64encode(text.encode()).decode()}, delivery=delivery)

    def check(self, state: str) -> None:
        """Fail when axe finds something, or when the page is wider than its window."""
        found = []
        for size, viewport in SIZES.items():
            self.page.set_viewport_size(viewport)  # type: ignore[arg-type]
            for colours in ("light", "dark"):
                self.page.emulate_media(color_scheme=colours, reduced_motion="reduce")
                if self._folder:
                    self.page.screenshot(path=Path(self._folder) / f"{state}-{size}-{colours}.png")
                self.page.evaluate(AXE)
                result = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
                found += [
                    f"{state}, {size}, {colours}: {one['id']}: {node['html'][:200]} {node['failureSummary'][-200:]}"
                    for one in result["violations"]
                    for node in one["nodes"]
                ]
            width = self.page.evaluate("document.documentElement.scrollWidth")
            if width > viewport["width"]:
                found.append(f"{state}, {size}: {width} px wide")
        self.page.set_viewport_size(SIZES["wide"])  # type: ignore[arg-type]
        assert found == []


@pytest.fixture
def shown(visitors: Visitors, gateway: GatewayProcess) -> Show:
    return Show(visitors.context(viewport=SIZES["wide"]).new_page(), gateway)


def item(page: Page, kind: str) -> Any:
    return page.get_by_role("navigation").get_by_role("button", name=re.compile(rf"^{kind}\b"))


def test_the_form_at_the_entry(shown: Show) -> None:
    shown.open()
    shown.check("entry")


def test_connecting(shown: Show) -> None:
    shown.page.route_web_socket(re.compile("/v1/connect"), lambda socket: None)  # it is silent
    page = shown.open()
    page.get_by_label("Your name").fill("maya")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("button", name="Connecting…")).to_be_disabled()
    shown.check("connecting")


def test_refused(shown: Show) -> None:
    def refuse(socket: WebSocketRoute) -> None:
        socket.on_message(lambda text: socket.close(code=4216, reason="UNAUTHENTICATED: a key is needed"))

    shown.page.route_web_socket(re.compile("/v1/connect"), refuse)
    page = shown.open()
    page.get_by_label("Your name").fill("maya")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("alert")).to_have_text("This gateway asks for a key.")
    expect(page.get_by_label("API key")).to_be_focused()
    shown.check("refused")


def test_empty(shown: Show) -> None:
    page = shown.enter()
    expect(page.get_by_role("heading", name="No agent is here yet")).to_be_visible()
    shown.check("empty")


def test_agents_and_tasks(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    expect(page.get_by_role("heading", name="Pick an agent")).to_be_visible()
    expect(item(page, "print")).to_contain_text("waits for a worker")
    # The character that would turn the name is a mark, and the name is isolated.
    expect(page.locator("#agents bdi").filter(has_text="⟨U+202E⟩gnp.exe").first).to_be_attached()
    assert "\u202e" not in page.locator("body").inner_text()
    shown.check("list")


def test_a_conversation(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    item(page, "guide").click()
    shown.say("ag::lab::guide::1", '{"id": "1", "text": "Version 2.4.1 is built.\\nI begin with the tests."}')
    shown.say("ag::lab::guide::1", "plain text, שלום, and more")
    box = page.get_by_role("textbox", name="Message to guide")
    box.fill("Tell me when it is done, please")
    box.press("Enter")
    progress = {"source": "ag::lab::guide::1", "task_id": SHRINK["task_id"], "state": "running", "completion": 0.45}
    shown.tell(
        progress_update={**progress, "summary": "shrinking pictures", "step": {"sequence": 9, "total_steps": 20}}
    )
    expect(page.get_by_role("progressbar", name="shrinking pictures")).to_be_visible()
    expect(page.locator("#tasks")).to_contain_text("45 %")
    expect(page.get_by_role("button", name="Answer…: deploy")).to_be_visible()
    shown.check("conversation")


def test_a_conversation_with_an_agent_that_is_not_here(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    item(page, "echo").click()
    expect(page.locator("#log")).to_contain_text("It starts when you write to it")
    expect(page.locator("#chat-presence")).to_have_text("starts when you write")
    shown.check("startable")


def test_a_text_that_is_too_long(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    item(page, "guide").click()
    page.get_by_role("textbox", name="Message to guide").fill("W" * 100_123)
    expect(page.get_by_role("alert").filter(has_text="shorten it by 123")).to_be_visible()
    shown.check("too-long")


def test_without_a_connection(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    page.clock.install()
    item(page, "guide").click()
    page.route_web_socket(re.compile("/v1/connect"), lambda socket: None)
    shown.sockets[-1].close(code=4114, reason="the gateway stops")
    expect(page.get_by_role("alert").filter(has_text="No connection")).to_be_visible()
    shown.check("reconnecting")


def test_disconnected(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    shown.sockets[-1].close(code=4207, reason="PERMISSION_DENIED: lunch")
    expect(page.get_by_role("button", name="Connect again")).to_be_visible()
    shown.check("disconnected")


@pytest.mark.parametrize("kind", ["deploy", "pay", "sign", "shrink", "report", "call", "print"])
def test_a_task(shown: Show, kind: str) -> None:
    shown.fake.full()
    page = shown.enter()
    item(page, kind).click()
    expect(page.locator("#task-title")).to_be_focused()
    match kind:
        case "deploy":
            form = page.get_by_role("form", name="asks, in its own words")
            expect(form).to_contain_text("Where shall it go?")
            form.get_by_role("button", name="Approve").click()
            expect(form.get_by_role("alert")).to_have_text("Choose one first.")
            shown.check("task-no-choice")
            form.get_by_role("radio", name="staging first").check()
            expect(form.get_by_text("Choose one first.")).to_be_hidden()
            form.get_by_label("Why?").fill("x" * 10_001)
            expect(form.get_by_role("alert").filter(has_text="10,000 are allowed")).to_be_visible()
        case "pay":
            expect(page.locator("#task-form")).to_contain_text("approved = yes")
            expect(page.get_by_role("button", name="Cancel the task")).to_be_visible()
        case "sign":
            expect(page.locator("#task-form")).to_contain_text("Only user noor may answer.")
            expect(page.get_by_role("button", name="Approve")).to_be_hidden()
        case "report":
            expect(page.locator("#task-result")).to_contain_text('"pages": 12')
        case "call":
            expect(page.locator("#task-facts")).to_contain_text("as often as its retry policy allows")
        case "print":
            expect(page.locator("#task-facts")).to_contain_text("no worker is connected")
    shown.check(f"task-{kind}")


def test_a_discarded_dead_message_is_at_no_attempt_beyond_its_last(shown: Show) -> None:
    shown.fake.tasks = [task(8, "dead_message", "CANCELLED", attempt=3, error="task cancelled")]
    page = shown.enter()
    item(page, "dead_message").click()
    expect(page.locator("#task-facts")).to_contain_text("3 of 3")


def test_an_answer_does_not_go_to_a_question_that_was_not_shown(shown: Show) -> None:
    shown.fake.full()
    page = shown.enter()
    item(page, "deploy").click()
    page.get_by_role("radio", name="staging first").check()
    # The page does not look again: its timers look whether it is hidden.
    page.evaluate("() => Object.defineProperty(document, 'hidden', { get: () => true })")
    other = json.dumps({**FORM, "question": "Where shall the money go?"})
    shown.fake.tasks[0] = waiting(1, "deploy", {"_form": other})
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status").filter(has_text="It does not wait for this any more.")).to_be_visible()
    expect(page.locator("#task-question")).to_have_text("Where shall the money go?")
    expect(page.get_by_role("radio", name="staging first")).not_to_be_checked()
    assert not [one for one in shown.fake.sent if one["target_topic"].startswith("tk::")]


def test_a_request_for_authority(shown: Show) -> None:
    shown.fake.requests = [REQUEST]
    page = shown.enter()
    expect(page.get_by_role("dialog", name=re.compile("asks to act for"))).to_be_visible()
    shown.check("authority")
    page.keyboard.press("Escape")
    expect(page.locator("#requests").get_by_role("button")).to_be_visible()
    shown.check("authority-later")


@pytest.mark.parametrize("which", ["workspace", "address"])
def test_dialogs(shown: Show, which: str) -> None:
    shown.fake.full()
    page = shown.enter()
    page.locator(f"#{which}-button").click()
    if which == "address":
        page.get_by_label("Implementation").fill("no * here")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("“no-here” would do")
    shown.check(f"dialog-{which}")


def test_news(shown: Show) -> None:
    page = shown.enter()
    shown.fake.requests = []
    shown.tell(
        authority_request_event={
            "event_type": "AUTHORITY_REQUEST_EVENT_CREATED",
            "request": REQUEST,
        }
    )
    shown.fake.requests = [REQUEST]
    shown.tell(authority_request_event={"event_type": "AUTHORITY_REQUEST_EVENT_CREATED", "request": REQUEST})
    expect(page.get_by_role("dialog")).to_be_visible()
    shown.fake.requests = []
    expired = {**REQUEST, "status": "AUTHORITY_REQUEST_STATUS_EXPIRED"}
    shown.tell(authority_request_event={"event_type": "AUTHORITY_REQUEST_EVENT_EXPIRED", "request": expired})
    expect(page.locator("#authority-notice")).to_contain_text("has expired")
    shown.check("notice")
