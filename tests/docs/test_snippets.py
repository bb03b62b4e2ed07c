"""Run every example of the README and the docs, page by page, at a new gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import RUNNABLE, Snippet, agrees, read_commands, read_snippets
from tests.helpers.gateway import GatewayProcess, start_gateway

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT_S = 300

pytestmark = pytest.mark.snippets


def examples(page: Path) -> list[Snippet]:
    return list(read_snippets(page.read_text()))


def to_run(page: Path) -> list[Snippet]:
    return [one for one in examples(page) if one.language in RUNNABLE and one.marker != "skip"]


class Reader:
    """Types the examples of a page into one terminal."""

    def __init__(self, directory: Path, gateway: GatewayProcess) -> None:
        self.directory = directory
        self.gateway = gateway
        self.background: list[subprocess.Popen[bytes]] = []
        tools = directory / ".tools"
        tools.mkdir()
        self._tool(tools / "aether", f'#!/bin/sh\nexec "{sys.executable}" -m aether_trio "$@"\n')
        if shutil.which("curl") is None:
            # Readers have curl; the machine that runs the tests needs Python only.
            fetch = (
                "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[-1], timeout=30).read())"
            )
            self._tool(tools / "curl", f'#!/bin/sh\nexec "{sys.executable}" -c \'{fetch}\' "$@"\n')
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AETHER_")}
        environment = clean | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "AETHER_GATEWAY": gateway.address,
            "AETHER_OPS": gateway.ops_address,
            "NO_COLOR": "1",
            "XDG_CONFIG_HOME": str(directory / ".config"),
        }
        self.place: dict[str, Any] = {"cwd": directory, "env": environment, "stdin": subprocess.DEVNULL}

    @staticmethod
    def _tool(path: Path, script: str) -> None:
        path.write_text(script)
        path.chmod(0o755)

    def here(self, text: str) -> str:
        text = re.sub(r"\b(localhost|127\.0\.0\.1):50051\b", self.gateway.address, text)
        return re.sub(r"\b(localhost|127\.0\.0\.1):9090\b", self.gateway.ops_address, text)

    def run(self, arguments: list[str], where: str) -> str:
        """Run a command; return its standard output and error as a terminal shows them."""
        done = subprocess.run(
            arguments,
            **self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def start(self, arguments: list[str]) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.background.append(subprocess.Popen(arguments, **self.place, **quiet))

    def close(self) -> None:
        """End the background programs with SIGTERM, so that they end their children."""
        for process in self.background:
            process.terminate()
        for process in self.background:
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with start_gateway(ephemeral=True) as gateway:
        reader = Reader(tmp_path, gateway)
        try:
            yield reader
        finally:
            reader.close()


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_do_what_it_says(page: Path, reader: Reader) -> None:
    snippets = examples(page)
    for at, snippet in enumerate(snippets):
        where = f"{page.name}:{snippet.line}"
        body = reader.here(snippet.body)
        if snippet.marker == "prepare":
            reader.run(["bash", "-ec", snippet.note], where)
        if snippet.marker == "file":
            (reader.directory / snippet.note).write_text(body)
        elif snippet.language not in RUNNABLE or snippet.marker == "skip":
            continue
        elif snippet.language == "python":
            script = reader.directory / f"line_{snippet.line}.py"
            script.write_text(body)
            if snippet.marker == "background":
                reader.start([sys.executable, str(script)])
                continue
            printed = reader.run([sys.executable, str(script)], where)
            following = snippets[at + 1] if at + 1 < len(snippets) else None
            if following and (following.language, following.info) == ("text", "output"):
                expected = tuple(following.body.splitlines())
                assert agrees(expected, printed), f"{where} printed:\n{printed}"
        elif snippet.marker == "background":
            reader.start(["bash", "-c", f"exec {body}"])
        elif snippet.language == "console":
            for command in read_commands(snippet):
                printed = reader.run(["bash", "-c", reader.here(command.text)], f"{page.name}:{command.line}")
                expected = tuple(reader.here(line) for line in command.output)
                assert agrees(expected, printed), f"{page.name}:{command.line} printed:\n{printed}"
        else:
            reader.run(["bash", "-ec", body], where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_skipped_says_why(page: Path) -> None:
    for snippet in examples(page):
        if snippet.marker == "skip":
            assert len(snippet.note) > 20, f"{page.name}:{snippet.line}: a skipped example needs its reason"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {link}, and no heading has that anchor"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_its_readers(page: Path) -> None:
    beginning = " ".join(page.read_text().split()[:150])
    assert "This page is for a " in beginning, f"{page.name} does not say at its beginning who reads it"


def test_the_readme_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "$ pip install nox && nox -s demo\n" in readme
    assert "$ pip install nox && nox -s tests\n" in readme
    assert "pip install nox && nox -s tests\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (["a"], "a\n", True),
        (["a"], "b\n", False),
        (["a"], "a\nb\n", False),
        (["a", "..."], "a\nb\nc\n", True),
        (["...", "c"], "a\nb\nc\n", True),
        (["a ... c"], "a b c\n", True),
        (["a...c"], "ac\n", True),
        (["a ... c"], "a b\n", False),
        (["a  b"], "a b   \n", True),
        ([], "", True),
        ([], "anything\n", False),
        (["(x)"], "(x)\n", True),
    ],
)
def test_expected_output_is_compared_with_ellipses(expected: list[str], actual: str, same: bool) -> None:
    assert agrees(tuple(expected), actual) is same


def test_reading_a_page() -> None:
    page = "# T\n\n```console\n$ one \\\n> two\nout\n$ three\n```\n\n<!-- skip: why -->\n```python\nx\n```\n\ntext\n\n```text output\ny\n```\n"
    console, python, text = read_snippets(page)
    assert [(c.text, c.output) for c in read_commands(console)] == [("one \\\ntwo", ("out",)), ("three", ())]
    assert (python.marker, python.note, python.body) == ("skip", "why", "x\n")
    assert (text.language, text.info, text.marker) == ("text", "output", "")
