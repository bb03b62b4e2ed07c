"""The page for people as tests use it: a gateway, browsers, agents, a workspace."""

from __future__ import annotations

import re
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Locator, Page, expect

from aether_trio.client import AgentClient, connect_sync
from aether_trio.client.blocking.client import SyncClient
from tests.helpers.gateway import GatewayProcess

if TYPE_CHECKING:
    from tests.browser.conftest import Agents, Visitors


@dataclass(frozen=True)
class Scene:
    """The gateway, browsers and agents of one test, in a workspace for it alone."""

    gateway: GatewayProcess
    visitors: Visitors
    agents: Agents
    workspace: str

    def at_the_door(self, name: str = "", page: Page | None = None) -> Page:
        """Open the entry form; fill in name and workspace if a name is given."""
        page = page or self.visitors.page()
        page.goto(f"http://{self.gateway.address}/")
        if name:
            page.get_by_label("Your name").fill(name)
            page.locator("#workspace").fill(self.workspace)
        return page

    def come_in(self, page: Page | None = None, name: str = "maya") -> Page:
        page = self.at_the_door(name, page)
        enter(page)
        connected(page)
        return page

    def talk(self, page: Page | None = None, name: str = "maya") -> Page:
        return talk_to(self.come_in(page, name))

    def start(self, *options: Any) -> subprocess.Popen[str]:
        """Start an agent, which is called guide unless `options` give a name."""
        return self.agents.start(self.gateway, self.workspace, *options)

    def agent(self, implementation: str) -> AbstractContextManager[SyncClient[AgentClient]]:
        address = f"aether://{self.gateway.address}"
        return connect_sync(address, workspace=self.workspace, implementation=implementation, specifier="1")


def enter(page: Page) -> None:
    page.get_by_role("button", name="Enter").click()


def connected(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_attached()


def agent_button(page: Page, name: str = "guide") -> Locator:
    return page.locator("#agents").get_by_role("button", name=re.compile(rf"^{name} "))


def talk_to(page: Page, name: str = "guide") -> Page:
    agent_button(page, name).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    return page


def say(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name=re.compile("^Message to"))
    box.fill(text)
    box.press("Enter")


def lines(page: Page) -> Locator:
    return page.get_by_role("log").locator(".bubble")


def line(page: Page, text: str) -> Locator:
    return lines(page).get_by_text(text, exact=True)


def window_of(page: Page) -> str:
    return page.locator("#me-name").get_attribute("title") or ""
