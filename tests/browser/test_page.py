"""The page for people, as a person uses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
from playwright.sync_api import Error, expect

from tests.browser.scene import Scene, agent_button, connected, enter, line, lines, say, talk_to, window_of
from tests.helpers.gateway import GatewayProcess


def test_without_an_agent_it_says_how_to_start_one(scene: Scene) -> None:
    page = scene.come_in()
    expect(page.get_by_role("heading", name="No agent is here yet")).to_be_visible()
    command = page.locator("#command")
    expect(command).to_have_text(
        f"python docs/examples/chat_agent.py {scene.gateway.address} --workspace {scene.workspace}"
    )
    scene.start()
    expect(agent_button(page)).to_be_visible()
    expect(page.locator("#news")).to_have_text("guide is here")


def test_a_name_that_no_address_can_have_is_answered_with_one_that_does(scene: Scene) -> None:
    page = scene.at_the_door("Zoë Müller")
    page.locator("#workspace").fill(f"{scene.workspace}::*")
    enter(page)
    expect(page.get_by_role("alert")).to_contain_text("no spaces here, and no *, > or ::")
    expect(page.get_by_role("alert")).to_contain_text("“Zoë-Müller” would do")
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("A workspace has no spaces here")
    page.keyboard.press("Enter")
    connected(page)
    assert window_of(page).startswith("us::Zoë-Müller::")


def test_agents_are_in_the_order_of_their_numbers_and_long_names_break_nothing(scene: Scene) -> None:
    with ExitStack() as here:
        for number in (10, 2, 1):
            here.enter_context(scene.agent(f"i{number}"))
        page = scene.come_in(name="m" * 64)
        expect(page.get_by_role("navigation").locator("#agents button")).to_have_count(3)
        shown = page.locator("#agents button").all_inner_texts()
        assert [text.split()[0] if text.split()[0] != "I" else text.split()[1] for text in shown] == ["i1", "i2", "i10"]
        window = page.locator("#me-window")
        assert window.evaluate("(one) => one.getClientRects().length === 1 && one.offsetHeight < 24")


def test_a_person_and_an_agent_talk(scene: Scene) -> None:
    scene.start()
    page = scene.talk()
    text = "<b>Is the hut open?</b>\nOr not?"
    say(page, text)
    expect(lines(page).first).to_have_text(text)
    expect(page.get_by_text("✓ kept")).to_be_visible()
    expect(lines(page).nth(1)).to_contain_text("the longest is “open”")
    assert lines(page).count() == 2


def test_its_progress_bar_moves(scene: Scene) -> None:
    scene.start("guide", 0.1)
    page = scene.talk()
    page.evaluate(
        """() => {
          window.values = [];
          new MutationObserver(() => {
            const bar = document.querySelector('#tasks [role=progressbar]');
            if (bar) window.values.push([Number(bar.ariaValueNow), bar.ariaLabel]);
          }).observe(document.querySelector("#tasks"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    say(page, "count to 10")
    expect(line(page, "10. Done!")).to_be_visible()
    values = page.evaluate("window.values")
    percents = [value for value, _ in values]
    assert percents == sorted(percents)
    assert len(set(percents)) > 5
    assert percents[-1] == 100
    assert any(label.startswith("counting to 10: 5") for _, label in values)
    expect(page.get_by_role("progressbar")).to_have_count(0)  # a finished one goes away


def test_an_agent_that_reports_without_end_does_not_fill_the_page(scene: Scene) -> None:
    with scene.agent("busy") as busy:
        page = talk_to(scene.come_in(), "busy")
        cards = page.locator("#tasks > *")
        for number in range(60):
            busy.progress.report(f"task-{number}", completion=0.5, summary=f"number {number}", confirm=True)
        expect(cards.filter(has_text="number 59")).to_be_visible()
        expect(cards).to_have_count(20)


def test_an_agent_that_leaves_is_shown_as_gone_and_what_is_written_waits_for_it(scene: Scene) -> None:
    process = scene.start()
    page = scene.talk()
    expect(page.locator("#chat-presence")).to_have_text("here")
    process.kill()
    expect(page.locator("#chat-presence")).to_have_text("not here")
    expect(page.locator("#news")).to_have_text("guide has left")
    say(page, "are you there")
    expect(page.get_by_text("✓ kept")).to_be_visible()
    scene.start()
    expect(page.locator("#chat-presence")).to_have_text("here")
    expect(lines(page).nth(1)).to_contain_text("3 words")


def test_the_windows_of_a_user_stay_in_step(scene: Scene) -> None:
    scene.start("guide", 0.2)
    # Two tabs, and another browser.
    pages = [scene.visitors.page(), scene.visitors.page(), scene.visitors.elsewhere()]
    for page in pages:
        scene.talk(page)
    noor = scene.talk(scene.visitors.elsewhere(), "noor")
    assert len({window_of(page) for page in pages}) == 3
    for number, page in enumerate(pages):
        say(page, f"from window {number}")
        for other in pages:
            expect(line(other, f"from window {number}")).to_be_visible()
            expect(lines(other)).to_have_count(2 * number + 2)
    say(pages[0], "count to 100000")  # at most 200, in 40 s: long enough to be seen by all
    for page in pages:
        expect(page.get_by_role("progressbar", name="counting")).to_be_visible()
    assert [lines(page).all_inner_texts() for page in pages] == [lines(pages[0]).all_inner_texts()] * 3
    people = pages[0].locator("#people")
    expect(people.get_by_role("listitem").filter(has_text="maya (you)")).to_contain_text("3 windows")
    expect(people.get_by_text("noor")).to_be_visible()
    expect(lines(noor)).to_have_count(0)  # another user does not see a conversation
    expect(noor.get_by_role("progressbar")).to_have_count(0)


def test_a_reload_resumes(scene: Scene) -> None:
    scene.start()
    page = scene.talk()
    say(page, "before the reload")
    expect(lines(page)).to_have_count(2)
    before = window_of(page)
    page.reload()
    talk_to(page)
    assert window_of(page) == before
    expect(line(page, "before the reload")).to_be_visible()
    say(page, "behind it")
    expect(lines(page)).to_have_count(4)


@pytest.mark.parametrize("how", ["closed", "crashed"])
def test_a_new_tab_takes_the_place_of_one_that_was_killed(scene: Scene, how: str) -> None:
    scene.start("guide", 0.2)
    page = scene.talk()
    before = window_of(page)
    say(page, "count to 5")
    expect(page.get_by_role("progressbar")).to_be_visible()
    if how == "closed":
        page.close()
    else:
        with pytest.raises(Error):
            page.goto("chrome://crash")
    page = scene.at_the_door()
    assert page.get_by_label("Your name").input_value() == "maya"
    enter(page)
    talk_to(page)
    assert window_of(page) == before
    expect(line(page, "count to 5")).to_be_visible()
    # It was said while there was no window, or comes now.
    expect(line(page, "5. Done!")).to_be_visible()
    assert lines(page).count() == 2


def test_another_workspace_is_another_world(scene: Scene) -> None:
    scene.start()
    replace(scene, workspace=f"{scene.workspace}-2").start("clerk")
    page = scene.talk()
    other = scene.talk()
    say(page, "hello here")
    expect(lines(page)).to_have_count(2)

    def go_to(there: str) -> None:
        page.bring_to_front()
        page.get_by_role("button", name=re.compile("workspace")).click()
        page.get_by_role("dialog").get_by_label("Workspace").fill(there)
        page.get_by_role("button", name="Go there").click()
        expect(page.get_by_role("dialog")).to_be_hidden()

    go_to(f"{scene.workspace}-2")
    talk_to(page, "clerk")
    expect(agent_button(page)).to_have_count(0)
    say(page, "hello there")
    expect(lines(page)).to_have_count(2)
    expect(lines(other)).to_have_count(2)  # it has stayed behind
    say(other, "and here again")
    expect(lines(other)).to_have_count(4)
    go_to(scene.workspace)
    talk_to(page)
    expect(lines(page)).to_have_count(4)  # what was said meanwhile has waited
    page.get_by_role("button", name=re.compile("workspace")).click()
    page.get_by_role("dialog").get_by_label("Workspace").fill("no * allowed")
    page.get_by_role("button", name="Go there").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#workspace-name")).to_have_text(scene.workspace)


def test_a_gateway_that_is_killed_and_comes_back_loses_nothing(own_scene: Callable[..., Scene]) -> None:
    scene = own_scene()
    scene.start()
    page = scene.talk()
    say(page, "before the crash")
    expect(lines(page)).to_have_count(2)
    scene.gateway.kill()
    expect(page.get_by_role("alert").filter(has_text="No connection")).to_be_visible()
    say(page, "said while unreachable")
    expect(page.get_by_text("sending…")).to_be_visible()
    page.get_by_role("button", name="Try now").click()  # the gateway is not back yet
    expect(page.get_by_text("sending…")).to_be_visible()
    scene.gateway.restart()
    # A click of a person would fail if the client has reconnected already and hides the button.
    page.locator("#banner-button").dispatch_event("click")
    expect(page.get_by_text("✓ kept")).to_have_count(2)
    expect(lines(page)).to_have_count(4)
    expect(lines(page).nth(3)).to_contain_text("3 words; the longest is “unreachable”")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#workspace-name")).to_have_text(scene.workspace)


def test_what_was_not_sent_before_a_reload_is_sent_after_it(own_scene: Callable[..., Scene]) -> None:
    scene = own_scene()
    scene.start()
    page = scene.talk()
    scene.gateway.kill()
    say(page, "into the void")
    expect(page.get_by_text("sending…")).to_be_visible()
    page.close()
    scene.gateway.restart()
    page = scene.at_the_door()
    enter(page)
    talk_to(page)
    expect(lines(page)).to_have_count(2)
    expect(page.get_by_text("✓ kept")).to_have_count(1)


def test_what_was_said_a_moment_ago_in_a_tab_that_is_gone_is_sent_too(scene: Scene) -> None:
    scene.start()
    page = scene.at_the_door()
    said = {"id": "c0ffee", "text": "with my last breath", "mine": True, "state": "sending"}
    page.evaluate(
        """([key, agent, line]) => {
          localStorage.setItem(key, JSON.stringify({ [agent]: [{ ...line, at: Date.now() + 1500 }] }));
        }""",
        [f"aether-page:maya:{scene.workspace}", f"ag::{scene.workspace}::guide::1", said],
    )
    scene.talk(page)
    expect(page.get_by_text("✓ kept")).to_be_visible()
    expect(lines(page).filter(has_text="4 words")).to_be_visible()


def test_the_form_says_when_the_gateway_does_not_answer(own_scene: Callable[..., Scene]) -> None:
    scene = own_scene()
    page = scene.visitors.page()
    page.clock.install()
    scene.at_the_door("maya", page)
    scene.gateway.kill()
    enter(page)
    expect(page.get_by_role("button", name="Connecting…")).to_be_disabled()
    page.clock.fast_forward(20_000)
    expect(page.get_by_role("alert")).to_have_text("The gateway does not answer. Is it running?")
    scene.gateway.restart()
    enter(page)
    connected(page)


def test_a_gateway_that_asks_for_a_key(locked_gateway: Callable[..., tuple[GatewayProcess, str]], scene: Scene) -> None:
    gateway, key = locked_gateway(page=True)
    page = replace(scene, gateway=gateway).at_the_door("maya")
    enter(page)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("This gateway asks for a key.")
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("wrong")
    enter(page)
    expect(alert).to_contain_text(re.compile("key", re.IGNORECASE))
    expect(alert).not_to_have_text("This gateway asks for a key.")
    field.fill(key)
    field.press("Enter")
    connected(page)
    # Neither in what the page keeps, nor for the next one: after a reload it asks again.
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert key not in kept
    page.reload()
    expect(page.get_by_role("button", name="Enter")).to_be_visible()


def test_a_page_that_an_operator_disconnects_says_why_and_waits_for_a_click(scene: Scene) -> None:
    page = scene.come_in()
    aether = [sys.executable, "-m", "aether_trio", "sessions", "--gateway", scene.gateway.address]
    rows = json.loads(subprocess.check_output([*aether, "--workspace", scene.workspace, "--json"], text=True))
    subprocess.check_call([*aether, "--disconnect", rows[0]["session_id"], "--reason", "lunch"])
    alert = page.get_by_role("alert").filter(has_text="lunch")
    expect(alert).to_be_visible()
    page.get_by_role("button", name="Connect again").click()
    expect(alert).to_be_hidden()
    connected(page)


def test_a_small_screen_shows_the_list_or_one_conversation_and_the_keyboard_suffices(scene: Scene) -> None:
    long_name = "a-name-that-does-not-end-" * 3
    scene.start(long_name)
    page = scene.visitors.context(viewport={"width": 360, "height": 640}).new_page()
    scene.at_the_door(page=page)
    page.keyboard.type("m" * 64)
    page.keyboard.press("Tab")
    page.keyboard.type(scene.workspace)
    page.keyboard.press("Enter")
    name = agent_button(page, long_name)
    expect(name).to_be_visible()
    expect(page.get_by_role("log")).to_be_hidden()
    name.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name=re.compile("^Message to"))).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(lines(page).first).to_have_text("one\ntwo")
    expect(name).to_be_hidden()
    say(page, "W" * 3000)
    expect(lines(page)).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Back to the list").click()
    expect(name).to_be_focused()


def test_a_line_that_is_kept_is_shown_so_though_the_line_before_it_was_refused(own_scene: Callable[..., Scene]) -> None:
    scene = own_scene(extra_args=("--set", "limits.payload_bytes=2000"))
    scene.start()
    page = scene.talk()
    page.evaluate(
        """() => {
          for (const text of ["first", "too long ".repeat(400), "short"]) {
            document.querySelector("#text").value = text;
            document.querySelector("#composer").requestSubmit();
          }
        }"""
    )
    mine = page.get_by_role("log").locator(".line.mine")
    expect(mine).to_have_count(3)
    expect(mine.nth(1).locator(".meta")).to_contain_text("not sent")
    expect(mine.last.locator(".meta")).to_contain_text("✓ kept")


def test_everything_comes_from_the_gateway(scene: Scene) -> None:
    page = scene.visitors.page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    scene.come_in(page)
    assert asked
    assert all(url.startswith(f"http://{scene.gateway.address}/") for url in asked)
    # The policy that visitors watch over is in force: what it forbids does not run.
    page.evaluate(
        "() => { const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s) }"
    )
    assert page.evaluate("window.ran") is None
    assert scene.visitors.problems
    scene.visitors.problems.clear()
