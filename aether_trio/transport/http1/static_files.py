"""Loads the static files that the gateway serves: browser client and web page.

    /client/*      aether_trio/client/browser/    always
    / and /demo/*  aether_trio/web/               when the page is on; / is its index.html

Package data, read once into a table by path, so no path leads elsewhere. Every response is
revalidated by its ETag, so that a newer gateway is a newer client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aether_trio.transport.http1.connection import Headers

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
"""By the end of the name; files of no other kind are served."""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts, styles and connections of the gateway only; no page may frame it."""

_ALL: Final[Headers] = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-cache"),
    ("Referrer-Policy", "no-referrer"),
]
_CLIENT: Final[Headers] = [
    # A page of another origin may import the client; whether it may connect is for the allow-list
    # to say.
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]
_PAGE: Final[Headers] = [
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
]


@dataclass(frozen=True, slots=True)
class StaticFile:
    """The content and headers of one static file, ready to be sent."""

    body: bytes
    etag: str
    headers: Headers

    def unchanged(self, if_none_match: str) -> bool:
        """Return whether the client's cached copy (If-None-Match) is still current."""
        return any(tag.strip().removeprefix("W/") in (self.etag, "*") for tag in if_none_match.split(","))


def load_files(*, page: bool) -> dict[str, StaticFile]:
    """Load all static files into a table by request path."""
    root = files("aether_trio")
    table = {f"/client/{name}": _file(item, _CLIENT) for name, item in _walk(root / "client" / "browser")}
    if page:
        table |= {f"/demo/{name}": _file(item, _PAGE) for name, item in _walk(root / "web")}
        index = table.get("/demo/index.html")
        if index is not None:
            table["/"] = table["/demo/"] = index
    return table


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    if not folder.is_dir():
        return
    for item in folder.iterdir():
        if item.name.startswith((".", "_")):
            continue
        if item.is_dir():
            yield from _walk(item, f"{prefix}{item.name}/")
        elif _type_of(item.name):
            yield prefix + item.name, item


def _type_of(name: str) -> str | None:
    return next((kind for end, kind in _TYPES.items() if name.endswith(end)), None)


def _file(item: Traversable, more: Headers) -> StaticFile:
    body = item.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    kind = _type_of(item.name)
    assert kind is not None
    return StaticFile(body, etag, [("Content-Type", kind), ("ETag", etag), *_ALL, *more])
