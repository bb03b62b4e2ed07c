"""Writes the table of metrics in docs/monitoring.md from telemetry/families.py.

`python scripts/list_metrics.py` prints the page as it should be; `--write` writes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from aether_trio.telemetry.families import FAMILIES, WORKSPACE

PAGE: Final = Path(__file__).parents[1] / "docs" / "monitoring.md"
BEGIN: Final = "<!-- metrics: made by scripts/list_metrics.py -->"
END: Final = "<!-- end of metrics -->"


def table() -> str:
    """Return the Markdown table of all metrics, in the order of a scrape."""
    lines = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"({label})" if label == WORKSPACE else f"`{label}`" for label in family.labels)
        text = family.text.removesuffix(".").replace("|", r"\|")
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {text} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/monitoring.md")
    made = page(PAGE.read_text())
    if parser.parse_args().write:
        PAGE.write_text(made)
    else:
        sys.stdout.write(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
