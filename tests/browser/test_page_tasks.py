"""The page with real agents and tasks: what can be started, progress, and answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import pytest
from playwright.sync_api import Locator, Page, expect

from aether_trio.client import AgentClient, OrchestratorClient, connect_sync
from aether_trio.client.blocking.client import SyncClient
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import WaitReason
from aether_trio.client.operations.task_values import WaitSpec
from tests.browser.conftest import ROOT
from tests.browser.scene import Scene, agent_button, connected, enter, line, lines, say, talk_to
from tests.docs.snippets import read_snippets
from tests.helpers.gateway import GatewayProcess

FORM = r'{"question": "Version 2 is built.\nShip it?", "choices": ["staging", "production"], "text": "Why?"}'


class Work(NamedTuple):
    """A task that an agent has begun."""

    agent: SyncClient[AgentClient]
    task_id: str

    def wait(self, match: dict[str, str], expected: str = "") -> None:
        wait = WaitSpec(reason=WaitReason.INPUT, input_match=match, expected_principal=expected)
        self.agent.tasks.pause(self.task_id, wait)

    def report(self, completion: float, summary: str) -> None:
        self.agent.progress.report(self.task_id, completion=completion, summary=summary, confirm=True)

    def input(self) -> dict[str, Any]:
        """What has ended its wait."""
        found: dict[str, Any] = json.loads(self.agent.tasks.get(self.task_id).metadata["_input"])
        return found


@contextmanager
def working(scene: Scene, name: str) -> Iterator[Work]:
    """An agent with a task of the same name, which it has begun."""
    with scene.agent(name) as agent:
        made = agent.tasks.create(name, target=agent.topic)
        agent.tasks.claim(made.task_id)
        yield Work(agent, made.task_id)


def item(page: Page, name: str) -> Locator:
    return (
        page.get_by_role("navigation")
        .locator("#waiting, #task-list")
        .get_by_role("button", name=re.compile(rf"^{name}\b"))
    )


def tab_to(page: Page, locator: Locator) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if locator.evaluate("(one) => one === document.activeElement"):
            return
    raise AssertionError(f"{locator} is not reached with Tab")


def test_the_whole_way_with_the_keyboard_alone(scene: Scene) -> None:
    scene.start()
    with working(scene, "deploy") as work:
        work.wait({"_form": FORM})
        page = scene.visitors.page()
        page.goto(f"http://{scene.gateway.address}/")
        page.keyboard.type("maya")
        tab_to(page, page.locator("#workspace"))
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type(scene.workspace)
        page.keyboard.press("Enter")
        connected(page)
        expect(agent_button(page)).to_be_visible()
        tab_to(page, agent_button(page))
        page.keyboard.press("Enter")
        expect(page.get_by_role("textbox", name="Message to guide")).to_be_focused()
        page.keyboard.type("Is the hut open?")
        page.keyboard.press("Enter")
        expect(lines(page).nth(1)).to_contain_text("the longest is “open”")

        expect(item(page, "deploy")).to_contain_text("Version 2 is built. Ship it?")
        expect(page).to_have_title(re.compile(r"^\(1\)"))
        for _ in range(30):
            page.keyboard.press("Shift+Tab")
            if item(page, "deploy").evaluate("(one) => one === document.activeElement"):
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="deploy")).to_be_focused()
        form = page.locator("#task-form")
        expect(form).to_contain_text(f"ag::{scene.workspace}::deploy::1 asks, in its own words")
        expect(form.get_by_text("Ship it?")).to_have_text("Version 2 is built.\nShip it?", use_inner_text=True)
        page.keyboard.press("Enter")  # decides nothing
        tab_to(page, form.get_by_role("button", name="Approve"))
        page.keyboard.press("Enter")
        expect(form.get_by_role("alert")).to_have_text("Choose one first.")
        expect(form.get_by_role("radio", name="staging")).to_be_focused()
        page.keyboard.press("ArrowDown")
        expect(form.get_by_role("radio", name="production")).to_be_checked()
        page.keyboard.press("Tab")
        expect(form.get_by_label("Why?")).to_be_focused()
        page.keyboard.type("It is Friday.")
        tab_to(page, form.get_by_role("button", name="Approve"))
        page.keyboard.press("Space")
        expect(page.get_by_role("status").filter(has_text="Approved. The task runs.")).to_be_visible()
        expect(page.get_by_role("heading", name="deploy")).to_be_focused()
        expect(form).to_be_hidden()
        expect(page.locator("#waiting-box")).to_be_hidden()
        expect(page).not_to_have_title(re.compile(r"^\("))
        assert work.input() == {
            "by": page.locator("#me-name").get_attribute("title"),
            "metadata": {"decision": "approve", "choice": "production", "text": "It is Friday.", "question_id": ANY},
            "payload_base64": "",
        }


def test_a_task_is_rejected_in_one_window_and_the_other_one_knows(scene: Scene) -> None:
    with working(scene, "deploy") as work:
        work.wait({"_form": '{"question": "Ship it?"}', "id": "7"})
        first, second = scene.come_in(), scene.come_in(scene.visitors.elsewhere(), "noor")
        for page in (first, second):
            item(page, "deploy").click()
            expect(page.get_by_role("button", name="Reject")).to_be_enabled()
        first.bring_to_front()
        first.get_by_role("button", name="Reject").click()
        expect(first.get_by_role("status").filter(has_text="Rejected. The task runs.")).to_be_visible()
        expect(second.locator("#task-form")).to_be_hidden()
        assert work.input()["metadata"] == {"decision": "reject", "id": "7", "question_id": ANY}


def test_a_wait_without_a_form_says_what_it_waits_for_and_is_sent_exactly_that(scene: Scene) -> None:
    with working(scene, "pay") as work:
        work.wait({"approved": "yes", "by": "phone"})
        page = scene.come_in()
        item(page, "pay").click()
        form = page.locator("#task-form")
        expect(form).to_contain_text("It goes on with approved = yes, by = phone.")
        expect(form.get_by_role("button", name="Reject")).to_be_hidden()
        form.get_by_role("button", name="Approve").click()
        expect(page.get_by_role("status").filter(has_text="Approved. The task runs.")).to_be_visible()
        assert work.input()["metadata"] == {"approved": "yes", "by": "phone"}


def test_a_wait_without_a_form_is_cancelled_for_a_no_by_a_person_who_may(scene: Scene) -> None:
    with working(scene, "pay") as work:
        work.wait({"approved": "yes"})
        page = scene.come_in()
        item(page, "pay").click()
        page.get_by_role("button", name="Cancel the task").click()
        expect(page.locator("#task-form").get_by_role("alert")).to_contain_text("does not let you cancel it")
        expect(page.get_by_role("button", name="Approve")).to_be_enabled()
        page = scene.come_in(scene.visitors.elsewhere(), "admin")
        item(page, "pay").click()
        page.get_by_role("button", name="Cancel the task").click()
        expect(page.locator("#task-state")).to_have_text("cancelled")
        expect(page.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()
        expect(page.get_by_role("heading", name="pay")).to_be_focused()


def test_another_person_is_asked_and_this_one_is_told_so(scene: Scene) -> None:
    with working(scene, "sign") as work:
        work.wait({"_form": '{"question": "Sign?"}'}, "noor")
        maya, noor = scene.come_in(), scene.come_in(scene.visitors.elsewhere(), "noor")
        expect(item(maya, "sign")).to_contain_text("waits for user noor")
        expect(maya.locator("#waiting-box")).to_be_hidden()
        item(maya, "sign").click()
        expect(maya.locator("#task-form")).to_contain_text("Only user noor may answer.")
        expect(maya.get_by_role("button", name="Approve")).to_be_hidden()
        noor.bring_to_front()
        item(noor, "sign").click()
        noor.get_by_role("button", name="Approve").click()
        expect(noor.get_by_role("status").filter(has_text="Approved. The task runs.")).to_be_visible()
        assert work.input()["by"].startswith("us::noor::")


def test_tasks_of_a_workflow_are_named_by_what_they_are(scene: Scene) -> None:
    """Their types are workflow_run, workflow and workflow_question, all alike."""
    steps = [
        {"id": "each", "for_each": {"items": [1, 2]}, "action": {"agent": "nowhere"}},
        {"id": "decide", "ask": "Publish the tour?"},
    ]
    with scene.agent("boss") as boss:
        boss.workflow.apply([{"id": "tour", "steps": steps}])
        boss.workflow.run("tour")
        page = scene.come_in()
        expect(item(page, "workflow tour")).to_be_visible()
        expect(item(page, "step each")).to_contain_text([re.compile(r"each\[\d\]")] * 2)
        item(page, "step decide").click()
        expect(page.locator("#task-title")).to_have_text("step decide")


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_a_progress_bar_ends_with_its_task(scene: Scene, end: str) -> None:
    with working(scene, "shrinker") as work:
        page = talk_to(scene.come_in(), "shrinker")
        bar = page.get_by_role("progressbar", name="making it smaller")
        work.report(0.4, "making it smaller")
        expect(bar).to_be_visible()
        expect(item(page, "shrinker")).to_contain_text("40 %")
        expect(agent_button(page, "shrinker").locator(".bar")).to_be_visible()
        tasks = work.agent.tasks
        if end == "completed":
            tasks.complete(work.task_id)
        elif end == "failed":
            tasks.fail(work.task_id, reason="no paper")
        else:
            tasks.cancel(work.task_id)
        expect(item(page, "shrinker")).to_contain_text(end)
        expect(bar).to_have_count(0)
        expect(agent_button(page, "shrinker").locator(".bar")).to_be_hidden()


def test_a_bar_ends_though_its_task_ended_without_a_connection(own_scene: Callable[..., Scene]) -> None:
    scene = own_scene()
    with working(scene, "shrinker") as work:
        page = talk_to(scene.come_in(), "shrinker")
        work.report(0.4, "making it smaller")
        expect(page.get_by_role("progressbar")).to_be_visible()
        page.context.set_offline(True)
        page.evaluate("() => dispatchEvent(new Event('offline'))")
        scene.gateway.kill()
        expect(page.get_by_role("alert").filter(has_text="No connection")).to_be_visible()
        scene.gateway.restart()
        work.agent.tasks.complete(work.task_id)
        expect(page.get_by_role("progressbar")).to_be_visible()  # the page does not know yet
        page.context.set_offline(False)
        expect(page.get_by_role("progressbar")).to_have_count(0)
        expect(item(page, "shrinker")).to_contain_text("completed")


def test_the_progress_of_a_task_is_shown_after_a_reload(scene: Scene) -> None:
    with working(scene, "shrinker") as work:
        work.report(0.6, "page 6 of 10")
        page = scene.come_in()  # later than the report
        item(page, "shrinker").click()
        bar = page.get_by_role("progressbar", name="Progress of shrinker")
        expect(bar).to_have_attribute("aria-valuenow", "60")
        expect(page.locator("#task-summary")).to_have_text("page 6 of 10")
        work.agent.tasks.complete(work.task_id)
        expect(page.locator("#task-state")).to_have_text("completed")
        expect(page.locator("#task-progress")).to_be_hidden()


def test_the_echo_of_the_quickstart_survives_a_person(scene: Scene, tmp_path: Path) -> None:
    (snippet,) = (
        one for one in read_snippets((ROOT / "docs" / "quickstart.md").read_text()) if one.marker == "background"
    )
    assert '"default", "echo", "1"' in snippet.body
    program = snippet.body.replace('"default"', f'"{scene.workspace}"').replace(
        "localhost:50051", scene.gateway.address
    )
    (tmp_path / "echo.py").write_text(program)
    process = subprocess.Popen([sys.executable, str(tmp_path / "echo.py")], stdin=subprocess.DEVNULL)
    try:
        page = scene.come_in()
        other = scene.come_in(scene.visitors.elsewhere())
        page.bring_to_front()
        talk_to(page, "echo")
        say(page, "are you there?")
        expect(line(page, "echo: are you there?")).to_be_visible()
        say(page, "and again?")
        expect(line(page, "echo: and again?")).to_be_visible()
        # The answers came to one window alone: the person's other windows show them as well, once.
        other.bring_to_front()
        talk_to(other, "echo")
        expect(line(other, "echo: and again?")).to_be_visible()
        expect(lines(other)).to_have_count(4)
        assert process.poll() is None
        page.reload()  # what was said is there still, and once
        talk_to(page, "echo")
        expect(lines(page)).to_have_count(4)
    finally:
        process.kill()
        process.wait()


def test_the_task_of_the_document_asks_and_reads_the_answer(scene: Scene, tmp_path: Path) -> None:
    (body,) = (one.body for one in read_snippets((ROOT / "docs" / "browser.md").read_text()) if "task.ask(" in one.body)
    program = body.replace('"default"', f'"{scene.workspace}"').replace("localhost:50051", scene.gateway.address)
    (tmp_path / "deploy.py").write_text(program)
    command = [sys.executable, str(tmp_path / "deploy.py")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            page = scene.come_in()
            item(page, "deploy").click()
            page.get_by_role("radio", name="staging").check()
            page.get_by_label("Why?").fill("it is time")
            page.get_by_role("button", name="Approve").click()
            expect(page.locator("#task-state")).to_have_text("completed")
            assert process.stdout is not None
            assert re.fullmatch(r"us::maya::\w+ approves staging it is time\n", process.stdout.read())
        finally:
            process.kill()


def test_agents_that_answer_whatever_they_like_are_shown(scene: Scene) -> None:
    with scene.agent("parrot") as parrot, scene.agent("lists") as lister:
        page = talk_to(scene.come_in(), "parrot")
        say(page, '{"id": "7", "text": "in braces"}')
        message = parrot.receive(timeout=60)
        assert message.text == '{"id": "7", "text": "in braces"}'  # plain
        parrot.send(message.source, message.payload)
        expect(lines(page).nth(1)).to_have_text("in braces")
        say(page, "the second one")  # as JSON, which it sends back
        parrot.send(message.source, parrot.receive(timeout=60).payload)
        expect(lines(page).nth(3)).to_have_text("the second one")
        talk_to(page, "lists")
        say(page, "hello")
        source = lister.receive(timeout=60).source
        for answer in (b"[1, 2]", b"", b"\xff\xfe\x00", "\u202eevil".encode(), b"null", b'{"text": 7}'):
            lister.send(source, answer)
        expect(lines(page)).to_have_count(7)
        assert lines(page).all_inner_texts()[1:4] == ["[1, 2]", "", "3 bytes that are not text"]


def test_an_agent_that_does_not_run_is_listed_and_starts_when_it_is_written_to(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import trio\n"
        "from aether_trio.client import AgentClient\n"
        "async def main():\n"
        "    async with AgentClient.from_environment() as agent:\n"
        "        async for message in agent:\n"
        "            await agent.reply(message, message.text.upper())\n"
        "trio.run(main)\n"
    )
    name = f"upper-{scene.workspace[:20]}"
    (tmp_path / "agents.yaml").write_text(
        f"agents:\n  {name}:\n    profile: {name}\n    command: [{sys.executable}, echo.py]\n    description: Writes in capitals\n"
    )
    command = [
        sys.executable,
        "-m",
        "aether_trio",
        "orchestrate",
        str(tmp_path / "agents.yaml"),
        "--gateway",
        scene.gateway.address,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    try:
        page = scene.come_in()
        expect(agent_button(page, name)).to_contain_text("Writes in capitals")
        talk_to(page, name)
        expect(page.locator("#chat-presence")).to_have_text("starts when you write")
        expect(page.get_by_role("log")).to_contain_text(f"{name} does not run. It starts when you write to it.")
        say(page, "good morning")
        expect(line(page, "GOOD MORNING")).to_be_visible()
        expect(page.locator("#chat-presence")).to_have_text("here")
        expect(page.locator("#tasks-box")).to_be_hidden()  # its start is not listed
    finally:
        process.terminate()
        process.wait()


def test_a_start_that_fails_is_said(scene: Scene) -> None:
    name = f"gone-{scene.workspace[:20]}"
    with connect_sync(
        f"aether://{scene.gateway.address}", OrchestratorClient, implementation="fails", profiles=[name]
    ) as orchestrator:
        orchestrator.registry.register(Registration(implementation=name, orchestrator_profile=name))
        page = scene.come_in()
        talk_to(page, name)
        say(page, "hello")
        for _ in range(3):
            start = next(iter(orchestrator.starts))
            expect(page.locator("#chat-presence")).to_have_text("is being started")
            orchestrator.tasks.fail(start.reference, reason="no such program")
        expect(agent_button(page, name)).to_contain_text("Could not be started: ")
        expect(page.locator("#chat-presence")).to_have_text("starts when you write")


def test_without_the_right_to_read_it_the_registry_is_asked_once(
    locked_gateway: Callable[..., tuple[GatewayProcess, str]], scene: Scene
) -> None:
    gateway, key = locked_gateway(page=True)
    page = Scene(gateway, scene.visitors, scene.agents, "closed").at_the_door("maya")
    page.locator("#key-details").click()
    page.get_by_label("API key").fill(key)
    enter(page)
    connected(page)
    expect(page.get_by_role("heading", name="No agent is here yet")).to_be_visible()


def test_after_write_to_the_focus_is_where_one_writes(scene: Scene) -> None:
    page = scene.come_in()
    page.get_by_role("button", name="Write to…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Implementation")).to_be_focused()
    page.keyboard.type("nowhere")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("textbox", name="Message to nowhere")).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_text("✓ kept")).to_be_visible()


def test_a_text_that_is_too_long_is_not_sent_and_stays(scene: Scene) -> None:
    with scene.agent("reader") as reader:
        page = talk_to(scene.come_in(), "reader")
        box = page.get_by_role("textbox", name="Message to reader")
        box.fill("W" * 100_001)
        note = page.get_by_role("alert").filter(
            has_text="This text has 100,001 characters. A message may have 100,000: shorten it by 1."
        )
        expect(note).to_be_visible()
        page.get_by_role("button", name="Send").click()
        expect(box).to_be_focused()
        assert len(box.input_value()) == 100_001
        expect(lines(page)).to_have_count(0)
        page.keyboard.press("Backspace")
        expect(note).to_be_hidden()
        page.keyboard.press("Enter")
        expect(page.get_by_text("✓ kept")).to_be_visible()
        assert len(reader.receive(timeout=60).payload) == 100_000
