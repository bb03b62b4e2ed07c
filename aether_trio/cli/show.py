"""Tables for people."""

from __future__ import annotations

import re
import sys
from typing import Final

from rich.console import Console
from rich.table import Table

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PIPE_WIDTH = 1000  # nothing may be cut off when another program reads


def visible(text: str) -> str:
    """On one line, and as what it is: others have written it, and a terminal obeys control characters."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_table(table: Table, empty: str) -> None:
    """Print to standard output; `empty` instead when it has no rows."""
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    if not table.row_count:
        console.print(empty)
        return
    table.box = None
    table.pad_edge = False
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)
