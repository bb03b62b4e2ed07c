"""Build the documentation's site without a network, and check its links."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_site

ROOT = Path(__file__).parents[2]

NOT_SHOWN = {"bodies", "namespace", "records", "streams"}
"""Modules of operations with nothing that programs use."""

BUILD = """
import socket, sys

def refuse(*args):
    raise SystemExit(f"the build uses the network: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", BUILD, "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README"}
    assert {page for page in pages if not (site / f"{page}.html").is_file()} == set()


def test_no_link_is_broken(site: Path) -> None:
    assert list(check_site.broken_links(site)) == []


def test_fenced_examples_are_code_without_their_directives(site: Path) -> None:
    page = (site / "tasks.html").read_text("utf-8")
    assert "&lt;!--" not in page
    assert "```" not in page


@pytest.mark.parametrize(
    ("page", "anchor"),
    [
        ("client", "aether_trio.client.AgentClient"),
        ("client", "aether_trio.client.Client.send"),
        ("client", "aether_trio.client.Job"),
        ("operations", "aether_trio.client.operations.tasks.Tasks.create"),
        ("operations", "aether_trio.client.operations.kv.Kv.compare_and_set"),
        ("errors", "aether_trio.client.errors.OutcomeUnknown"),
        ("testing", "aether_trio.testing"),
        ("orchestrator", "aether_trio.orchestrator.AgentSupervisor"),
        ("model", "aether_trio.model.identity.Identity"),
    ],
)
def test_the_reference_has_the_public_names(site: Path, page: str, anchor: str) -> None:
    assert f'id="{anchor}"' in (site / "api" / f"{page}.html").read_text("utf-8")


def test_the_reference_has_every_module_of_operations(site: Path) -> None:
    page = (site / "api" / "operations.html").read_text("utf-8")
    prefix = "aether_trio.client.operations"
    modules = {path.stem for path in (ROOT / "aether_trio" / "client" / "operations").glob("[!_]*.py")} - NOT_SHOWN
    assert {name for name in modules if f'id="{prefix}.{name}"' not in page} == set()


def test_a_broken_link_and_a_missing_anchor_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html">ok</a> <a href="b.html#there">ok</a> <a href="#here" id="here">ok</a>'
        '<a href="c.html">no file</a> <a href="b.html#away">no anchor</a> <img src="x.png">'
        '<a href="https://example.org/never-followed">elsewhere</a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="there">b</h2>')
    assert sorted(check_site.broken_links(tmp_path)) == ["a.html: b.html#away", "a.html: c.html", "a.html: x.png"]
