"""Fixtures of the browser tests: Chromium, a gateway process and agent processes.

Each module has one Chromium and one gateway. Each test makes new browser contexts, which share no
storage, as if they were several browsers. An exception in a page, or something that its
Content-Security-Policy forbids, fails the test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, WebSocketRoute, expect, sync_playwright

from scripts.ensure_program import CHROMIUM
from tests.browser.scene import Scene
from tests.helpers.gateway import GatewayProcess, start_gateway

ROOT = Path(__file__).parents[2]
CHAT_AGENT = ROOT / "docs" / "examples" / "chat_agent.py"
LIMIT_MS = 60_000
ELSEWHERE = "elsewhere.test"
"""A host of another site, which resolves to this machine."""

Run = Callable[..., Any]

expect.set_options(timeout=LIMIT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = CHROMIUM.find()
    if path is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(CHROMIUM.advice)
        pytest.skip(CHROMIUM.advice)
    arguments = [f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(data_dir=tmp_path_factory.mktemp("browser") / "data") as process:
        yield process


class Visitors:
    """The browsers of one test: `page()` is a tab of the first, `elsewhere()` not."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.problems: list[str] = []

    def context(self, **options: object) -> BrowserContext:
        context = self._browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(LIMIT_MS)
        context.on("page", self._watch)
        self._contexts.append(context)
        return context

    def page(self) -> Page:
        return (self._contexts[0] if self._contexts else self.context()).new_page()

    def elsewhere(self) -> Page:
        return self.context().new_page()

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on("console", self._read)

    def _read(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.problems.append(message.text)


@pytest.fixture
def visitors(browser: Browser) -> Iterator[Visitors]:
    made = Visitors(browser)
    yield made
    made.close()
    assert made.problems == []


class Agents:
    """Chat agents (docs/examples/chat_agent.py), each a process."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(
        self, gateway: GatewayProcess, workspace: str, name: str = "guide", pace_s: float = 0.02, *more: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, str(CHAT_AGENT), gateway.address, "--workspace", workspace, "--name", name]
        process = self._stack.enter_context(
            subprocess.Popen(
                [*command, "--pace", str(pace_s), *more],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert "is here" in process.stdout.readline()
        return process


@pytest.fixture
def agents() -> Iterator[Agents]:
    with ExitStack() as stack:
        yield Agents(stack)


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Start a gateway for this test alone; takes what start_gateway takes."""
    with ExitStack() as stack:

        def start(**options: object) -> GatewayProcess:
            options.setdefault("data_dir", tmp_path / "data")
            return stack.enter_context(start_gateway(**options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def locked_gateway(
    own_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> Callable[..., tuple[GatewayProcess, str]]:
    """Start a gateway that asks for a key; takes settings of its WebSocket port.

    The key's holder may use all workspaces.
    """

    def start(**websocket: object) -> tuple[GatewayProcess, str]:
        command = [sys.executable, "-m", "aether_trio"]
        new = [*command, "keys", "new", "--json", "--principal", "user"]
        made = json.loads(subprocess.check_output(new, text=True))
        settings = {
            "gateway": {"host": "127.0.0.1"},
            "auth": {"api_keys": [made["record"]]},
            "access": {"default": "open"},
            "websocket": websocket,
        }
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(settings))
        return own_gateway(command=(*command, "serve"), extra_args=("--config", str(file))), made["key"]

    return start


@pytest.fixture
def scene(gateway: GatewayProcess, visitors: Visitors, agents: Agents, request: pytest.FixtureRequest) -> Scene:
    return Scene(
        gateway, visitors, agents, re.sub(r"\W", "-", request.node.name.removeprefix("test_"))[-40:].strip("-_")
    )


@pytest.fixture
def own_scene(own_gateway: Callable[..., GatewayProcess], visitors: Visitors, agents: Agents) -> Callable[..., Scene]:
    """A scene with a gateway of its test; takes what start_gateway takes."""
    return lambda **options: Scene(own_gateway(**options), visitors, agents, "own")


class Site:
    """A web server for pages that tests write; it is reached under two host names."""

    def __init__(self, server: ThreadingHTTPServer, pages: dict[str, tuple[str, dict[str, str]]]) -> None:
        self._pages = pages
        self.port = server.server_address[1]
        self.put("/", "<!doctype html><title>a page</title>")

    def put(self, path: str, html: str, **headers: str) -> None:
        self._pages[path] = (html, headers)

    def address(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    pages: dict[str, tuple[str, dict[str, str]]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            html, headers = pages.get(self.path, ("", {}))
            body = html.encode()
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Length", str(len(body)))
            for name, value in {"Content_Type": "text/html; charset=utf-8", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Site(server, pages)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def run(gateway: GatewayProcess) -> Run:
    """Call a JavaScript function in a page with the module aether.js and values."""

    def call(page: Page, function: str, *given: object, at: GatewayProcess = gateway) -> Any:
        return page.evaluate(
            f"""async ([url, ...given]) => {{
              const aether = await import(url);
              window.until = async (client, state) => {{
                while (client.state !== state) {{
                  await new Promise((resolve) => client.addEventListener("state", resolve, {{ once: true }}));
                }}
              }};
              return await ({function})(aether, ...given);
            }}""",
            [f"http://{at.address}/client/aether.js", *given],
        )

    return call


@pytest.fixture
def page(visitors: Visitors, site: Site) -> Page:
    page = visitors.page()
    page.goto(site.address())
    return page


@pytest.fixture
def open_client(page: Page, run: Run) -> Callable[..., None]:
    """Connect `window.client` without a storage, then run the JavaScript `then`.

    `window.changes` has each later state as [state, code, close code].
    """

    def connect(then: str = "", **options: object) -> None:
        run(
            page,
            f"""async ({{ connect }}, options) => {{
              window.client = await connect({{ userId: "maya", storage: null, ...options }});
              window.changes = [];
              client.addEventListener("state", ({{ detail: {{ state, error }} }}) => {{
                changes.push([state, error?.code ?? "", error?.closeCode ?? 0]);
              }});
              {then}
            }}""",
            options,
        )

    return connect


def let_in(
    page: Page,
    answer: Callable[[WebSocketRoute, dict[str, Any]], None] | None = None,
    *,
    said: Sequence[object] = (),
    refused: Container[int] = (),
) -> list[WebSocketRoute]:
    """Accept connections as a gateway would, but those `refused`; return all in order.

    Messages of `said` follow the ack; `answer` is given all that the page sends behind its Init.
    """
    sockets: list[WebSocketRoute] = []

    def serve(socket: WebSocketRoute) -> None:
        sockets.append(socket)

        def read(text: str | bytes) -> None:
            message = json.loads(text)
            if sockets.index(socket) in refused:
                socket.close(code=4206, reason="DuplicateIdentityError: it is there")
            elif "init" in message:
                for one in ({"connection_ack": {"session_id": "s"}}, *said):
                    socket.send(json.dumps(one))
            elif answer is not None:
                answer(socket, message)

        socket.on_message(read)

    page.route_web_socket(re.compile("/v1/connect"), serve)
    return sockets
