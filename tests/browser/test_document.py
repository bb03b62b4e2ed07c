"""Run every snippet of docs/browser.md, with the address of the test's gateway."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import ROOT, Agents, Site, Visitors
from tests.docs.snippets import Snippet, read_snippets
from tests.helpers.gateway import GatewayProcess

SNIPPETS = list(read_snippets((ROOT / "docs" / "browser.md").read_text()))


def of_kind(language: str) -> list[Snippet]:
    return [one for one in SNIPPETS if one.language == language and one.marker != "skip"]


def here(text: str, gateway: GatewayProcess) -> str:
    assert "localhost:50051" in text
    return text.replace("localhost:50051", gateway.address)


def talk(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("open")
    page.get_by_label("Message").fill("count to 3")
    page.get_by_label("Message").press("Enter")
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("listitem").get_by_text("3. Done!", exact=True)).to_be_visible()
    expect(page.get_by_role("progressbar")).to_be_hidden()


def test_the_documents_page_talks(gateway: GatewayProcess, visitors: Visitors, agents: Agents, site: Site) -> None:
    (html,) = of_kind("html")
    agents.start(gateway, "default", "guide", 0.5)
    site.put("/page.html", here(html.body, gateway))
    page = visitors.page()
    page.goto(site.address("/page.html"))
    talk(page)


def test_with_the_policy_of_the_document_it_talks_and_nothing_inline_runs(
    gateway: GatewayProcess, visitors: Visitors, agents: Agents, site: Site
) -> None:
    (html,) = of_kind("html")
    (header,) = of_kind("http")
    name, _, policy = here(header.body, gateway).strip().partition(": ")
    found = re.fullmatch(r'(.*<script type="module")>(.*)(</script>\s*)', here(html.body, gateway), re.DOTALL)
    assert found is not None
    agents.start(gateway, "default", "guide", 0.5)
    site.put("/page.js", found[2], Content_Type="text/javascript")
    inline = "<script>window.ran = true</script>"
    site.put("/policy.html", f'{found[1]} src="/page.js">{found[3]}{inline}', **{name: policy})
    page = visitors.page()
    page.goto(site.address("/policy.html"))
    talk(page)
    assert page.evaluate("window.ran") is None
    assert len(visitors.problems) == 1
    visitors.problems.clear()


def test_the_other_snippets_run(gateway: GatewayProcess, visitors: Visitors, agents: Agents, site: Site) -> None:
    agents.start(gateway, "default", "guide", 0.01)
    scripts = of_kind("js")
    assert len(scripts) >= 6
    imports = {'import { connect } from "http://localhost:50051/client/aether.js";'}
    parts = [
        'const client = await connect({ userId: "maya", workspace: "default" });',
        "window.done = [];",
        "window.client = client;",
    ]
    for script in scripts:
        imports |= set(re.findall(r"^import .*;$", script.body, re.MULTILINE))
        body = re.sub(r"^import .*;$", "", script.body, flags=re.MULTILINE)
        parts.append(f"await (async () => {{\n{body}\n}})();\ndone.push({script.line});")
    code = "\n".join([*sorted(imports), *parts])
    site.put("/snippets.html", f'<!doctype html><script type="module">{here(code, gateway)}</script>')
    page = visitors.page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(site.address("/snippets.html"))
    page.wait_for_function("(count) => window.done?.length === count", arg=len(scripts))
    for part in ["ag::default::guide::1", "half a sentence", "ERR_"]:
        assert any(part in line for line in said), said
    with (
        page.expect_console_message(lambda message: "making something of it: thinking" in message.text),
        page.expect_console_message(lambda message: "CHAT" in message.text and "4 words" in message.text),
    ):
        page.evaluate("client.sendToAgent('guide', '1', 'and a last one')")
