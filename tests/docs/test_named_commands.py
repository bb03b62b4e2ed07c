"""Commands that pages name within a sentence exist, with their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from aether_trio.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def spans(page: Path) -> list[str]:
    """The `aether ...` in sentences and tables, each on one line."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(one.split()) for one in re.findall(r"`(aether [^`]+)`", prose)]


def mistake(text: str) -> str | None:
    words = shlex.split(re.split(r"[|>;]", text)[0])[1:]
    context, command = click.Context(app), app.get_command(click.Context(app), words[0])
    if command is None:
        return None if words[0].startswith("-") or not words[0].islower() else f"there is no {words[0]}"
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-") and rest[0].islower():
        found = command.get_command(context, rest[0])
        if found is None:
            return f"{command.name} has no {rest[0]}"
        command, rest = found, rest[1:]
    options = {name: one for one in command.params if isinstance(one, click.Option) for name in one.opts}
    options |= {name: one for one in command.params if isinstance(one, click.Option) for name in one.secondary_opts}
    free = sum(one.nargs if one.nargs > 0 else 1000 for one in command.params if isinstance(one, click.Argument))
    while rest:
        word = rest.pop(0)
        name, given, _ = word.partition("=")
        if name in ("--help", "..."):
            continue
        if not name.startswith("-") or name == "-":
            if isinstance(command, click.Group):
                continue  # COMMAND, or a word for one
            free -= 1
            if free < 0:
                return f"{command.name} takes no {word}"
        elif name not in options:
            return f"{command.name} has no {name}"
        elif not given and not options[name].is_flag and rest:
            rest.pop(0)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_in_a_sentence_exists(page: Path) -> None:
    wrong = {text: found for text in spans(page) if (found := mistake(text)) is not None}
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    ["aether sessions list", "aether audits", "aether audit find", "aether backup a b", "aether backup a --fast"],
)
def test_a_wrong_one_is_found(text: str) -> None:
    assert mistake(text) is not None
