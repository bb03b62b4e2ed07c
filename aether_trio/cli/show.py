"""Tables for people."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 1000  # nothing may be cut off when another program reads


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
