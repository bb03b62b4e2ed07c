"""Add pages to the documentation's site that are not in docs/; a hook of MkDocs.

The project's README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and links to them from docs/
work as on the forge. Links to other files of the repository become code, as the site has no copy of
them. API_PAGES become the reference, made from docstrings by mkdocstrings.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]

ROOT_PAGES: Final[Mapping[str, str]] = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository's root, and the pages of the site that they become."""

OPERATION_MODULES: Final = (
    "kv", "checkpoints", "tasks", "task_values", "task_results", "task_events", "topics", "progress", "agents", "sessions", "requests", "grants",
    "grant_values", "grant_cache", "access_checks", "access_explanation", "access_rules", "groups", "principals", "audit",
    "tokens", "workspaces", "gateway", "workflow", "workflow_values", "proxy", "proxy_service", "tunnels", "enums",
)  # fmt: skip

API_PAGES: Final[Mapping[str, tuple[str, str, Mapping[str, Sequence[str]]]]] = {
    "api/client.md": (
        "Clients, messages and jobs",
        "A client for each kind of participant, its messages, and the tasks that it works on.",
        {
            "aether_trio.client": (
                "AgentClient", "UserClient", "TaskClient", "ServiceClient", "OrchestratorClient",
                "WorkflowEngineClient", "BridgeClient", "MetricsBridgeClient", "Client", "ClientOptions", "TlsOptions",
                "Retry", "State", "IncomingMessage", "MessageType", "Publication", "Feed", "Job", "JobEnd", "Jobs",
                "TaskOver", "ClientStatistics", "Requester", "connect_sync", "SyncClient", "SyncJob", "SyncPublication",
            )
        },
    ),
    "api/operations.md": (
        "Operations",
        "The operations of a client, such as `client.kv` and `client.tasks`, and the values that they take and return.",
        {f"aether_trio.client.operations.{name}": () for name in OPERATION_MODULES},
    ),
    "api/errors.md": (
        "Errors",
        "The exceptions of the client, and the codes of the protocol. [The table](../errors.md) has their remedies.",
        {"aether_trio.client.errors": (), "aether_trio.model.errors": ()},
    ),
    "api/testing.md": (
        "Testing",
        "For the tests of your agents: a gateway in memory, without a port and without files.",
        {"aether_trio.testing": ()},
    ),
    "api/orchestrator.md": (
        "Orchestrator",
        "The parts of `aether orchestrate`, for programs that start agents in another form.",
        {"aether_trio.orchestrator": ()},
    ),
    "api/model.md": (
        "Identities and topics",
        "Identities and topics, parsed and checked as the gateway does it.",
        {"aether_trio.model.identity": (), "aether_trio.model.topics": ()},
    ),
}  # fmt: skip
"""Pages of the reference: title, first paragraph, modules with members (none: all public ones)."""

WIDE_PAGES: Final = frozenset({"errors.md", "monitoring.md"})
"""Pages with a table for which the column of contents leaves no room."""

API_INDEX: Final = "api/index.md"
_API_HEAD: Final = """\
# The Python API

These pages are made from the docstrings of the modules that programs import.

| page | what it has |
|---|---|
"""

_TARGET: Final = re.compile(r"\]\(([^)\s]+)\)")
_PLAIN_LINK: Final = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^)\s]+)\)")
_FENCED: Final = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_COMMENT: Final = re.compile(r"^<!-- .*? -->\n", re.DOTALL | re.MULTILINE)
_OUTPUT: Final = re.compile(r"^(```\w+) output$", re.MULTILINE)
"""Directives for the tests of snippets, which would be shown or hide the fence after them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    for page, (title, about, modules) in API_PAGES.items():
        reference = "\n".join(_directive(module, members) for module, members in modules.items())
        files.append(File.generated(config, page, content=f"# {title}\n\n{about}\n\n{reference}"))
    rows = (f"| [{title}]({posixpath.basename(page)}) | {about} |\n" for page, (title, about, _) in API_PAGES.items())
    files.append(File.generated(config, API_INDEX, content=_API_HEAD + "".join(rows)))
    return files


def _directive(module: str, members: Sequence[str]) -> str:
    options = f"    options:\n      members: [{', '.join(members)}]\n" if members else ""
    return f"::: {module}\n{options}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links of the site, or into code."""
    if page.file.src_uri in WIDE_PAGES:
        page.meta["hide"] = ["toc"]
    parts = _FENCED.split(_OUTPUT.sub(r"\1", _COMMENT.sub("", markdown)))
    return "".join(part if n % 2 else _with_links_of_the_site(part, page.file.src_uri) for n, part in enumerate(parts))


def _with_links_of_the_site(text: str, source: str) -> str:
    def plain(found: re.Match[str]) -> str:
        wanted = _wanted(found[2], source)
        return found[0] if wanted is None or _page_of(wanted) else f"`{wanted}`"

    def target(found: re.Match[str]) -> str:
        wanted = _wanted(found[1], source)
        page = wanted and _page_of(wanted)
        if not page:
            return found[0]
        _, hash_sign, anchor = found[1].partition("#")
        return f"]({posixpath.relpath(page, posixpath.dirname(source) or '.')}{hash_sign}{anchor})"

    return _TARGET.sub(target, _PLAIN_LINK.sub(plain, text))


def _wanted(link: str, source: str) -> str | None:
    """Return the file of the repository that a link leads to; None for other links."""
    path = link.partition("#")[0]
    if not path or "://" in path or path.startswith(("mailto:", "/")) or source in API_PAGES or source == API_INDEX:
        return None
    origin = next((name for name, page in ROOT_PAGES.items() if page == source), f"docs/{source}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))


def _page_of(wanted: str) -> str:
    """Return the file of the site that a file of the repository becomes, or ""."""
    if wanted in ROOT_PAGES:
        return ROOT_PAGES[wanted]
    is_page = wanted.startswith("docs/") and not wanted.startswith("docs/examples/") and posixpath.splitext(wanted)[1]
    return wanted.removeprefix("docs/") if is_page else ""
