"""Check the links of a built site: every file and every anchor is there.

    python scripts/check_site.py site

MkDocs checks links in Markdown. This checks those of the built pages, which the API reference and
the theme have made too. Links to other servers are not followed. Exits with 1 at a broken link.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_LINKS: Final = frozenset({("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")})


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in _LINKS and value:
                self.links.add(value)
            elif name in {"id", "name"} and value:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield `PAGE: LINK` for each link that leads to no file or no anchor of the site."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute: it is served for any address
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            there = target in pages
            if not target.is_file() or (
                there and parts.fragment and unquote(parts.fragment) not in pages[target].anchors
            ):
                yield f"{path.relative_to(site)}: {link}"


def main() -> int:
    (site,) = (Path(argument).resolve() for argument in sys.argv[1:])
    broken = list(broken_links(site))
    for one in broken:
        sys.stderr.write(f"{one}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
