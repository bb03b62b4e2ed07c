"""`aether errors`: what an error code means, and what to do."""

from __future__ import annotations

import click

from aether_trio.cli.exits import USAGE, CliError
from aether_trio.cli.output import print_json, say
from aether_trio.model.error_guide import ERROR_GUIDE, ErrorEntry


@click.command(
    name="errors",
    epilog="""
\b
Examples:
  aether errors ERR_PERMISSION_DENIED
  aether errors quota
  aether errors --json | jq -r .[].code
""",
)
@click.argument("words", nargs=-1, metavar="[CODE]...")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
def command(words: tuple[str, ...], as_array: bool) -> None:
    """Say what an error code means, and what to do.

    CODE is a code as in a message, or a part of it, in any case. Without CODE all codes are shown.
    """
    entries = [entry for entry in ERROR_GUIDE if not words or any(_is_meant(entry, word) for word in words)]
    if not entries:
        raise CliError(f"no error code has {' or '.join(words)} in it; `aether errors` lists all", USAGE)
    if as_array:
        print_json([entry._asdict() for entry in entries], indent=2)
        return
    for number, entry in enumerate(entries):
        if number:
            say("")
        say(f"{entry.code}  ({entry.where})")
        say(f"  {entry.cause}")
        say(f"  What to do: {entry.remedy}")


def _is_meant(entry: ErrorEntry, word: str) -> bool:
    return word.upper() == entry.code if word.isdigit() else word.upper() in entry.code
