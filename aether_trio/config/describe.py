"""Shows settings as commented YAML, for `aether config default` and `show`."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import yaml

from aether_trio.config.keys import Key, all_keys, section_texts
from aether_trio.config.settings import Settings

WIDTH: Final = 110
HIDDEN: Final = "********"


def describe(
    settings: Settings | None = None,
    *,
    origins: Mapping[str, str] | None = None,
    only_origins: bool = False,
    hide_secrets: bool = True,
) -> str:
    """Return settings as YAML with comments; `only_origins` leaves out the defaults."""
    settings = settings or Settings()
    origins = origins or {}
    lines: list[str] = []
    section: tuple[str, ...] = ()
    for key in all_keys().values():
        if only_origins and key.name not in origins:
            continue
        for depth, name in enumerate(key.path[:-1]):
            path = key.path[: depth + 1]
            if path == section[: depth + 1]:
                continue
            if depth == 0 and lines:
                lines.append("")
            indent = "  " * depth
            lines += [f"{indent}# {section_texts()[path]}", f"{indent}{name}:"]
        section = key.path[:-1]
        value: Any = functools.reduce(getattr, key.path, settings)
        if hide_secrets and value and key.is_secret:
            value = HIDDEN
        indent = "  " * len(section)
        lines += [indent + line for line in _entry(key, value, origins.get(key.name))]
    return "\n".join(lines) + "\n" if lines else "# Every setting is at its default.\n"


def _entry(key: Key, value: Any, origin: str | None) -> list[str]:
    text = key.description
    accepts = key.expected
    if accepts.startswith("one of"):
        text += f" {accepts.capitalize()}."
    comment = [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2 - 2 * len(key.path[:-1]))]
    body = yaml.safe_dump({key.path[-1]: msgspec.to_builtins(value)}, sort_keys=False, width=WIDTH).rstrip()
    body_lines = body.splitlines()
    if origin:
        body_lines[0] += f"  # set by {origin}"
    return comment + body_lines
