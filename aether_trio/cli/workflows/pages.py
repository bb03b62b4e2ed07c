"""Reads lists of the workflow engine that come in pages, up to a limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import click

from aether_trio.cli.output import is_terminal, say
from aether_trio.client.operations.workflow import WorkflowAnswer

_PART: Final = 1_000

limit_option: Final = click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)


async def read_pages(
    page: Callable[[int, str], Awaitable[WorkflowAnswer]], limit: int
) -> tuple[list[Mapping[str, Any]], bool]:
    """Return so many entries of a list, and whether there are more.

    `page` asks for so many entries behind a place, "" for the first ones.
    """
    found: list[Mapping[str, Any]] = []
    after = ""
    while True:
        answer = await page(min(limit - len(found), _PART), after)
        found += [one for one in answer.json() or [] if isinstance(one, dict)]
        after = answer.more_after
        if not after or len(found) >= limit:
            return found[:limit], bool(after) or len(found) > limit


def say_more(more: bool, limit: int) -> None:
    """Say in a terminal that there are more than a limit."""
    if more and is_terminal():
        say(f"there are more than these {limit}: see --limit", err=True)
