"""No page of another origin frames a page of the gateway, or puts scripts in it."""

from __future__ import annotations

import pytest

from aether_trio.transport.http1.static_files import load_files


@pytest.mark.parametrize("path", [path for path in load_files(page=True) if path.endswith((".html", "/"))])
def test_clickjacking(path: str) -> None:
    """tests/browser shows that Chromium refuses to frame it."""
    headers = dict(load_files(page=True)[path].headers)
    assert headers["X-Frame-Options"] == "DENY"
    policy = dict(one.strip().partition(" ")[::2] for one in headers["Content-Security-Policy"].split(";"))
    assert policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["default-src"] == "'none'"
