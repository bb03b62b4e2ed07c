"""Read the runnable examples out of a Markdown page.

A fenced block with the language python, console, bash or sh is an example. A comment right before
it changes what the test does with it:

    <!-- skip: reason -->          the example cannot run here, for this reason
    <!-- background: reason -->    start it (a program, or one command), stop it at the page's end
    <!-- file: NAME -->            (any language) save it as NAME for the examples after it
    <!-- prepare: COMMAND -->      run this command first; readers have its files already

A block ```text output after a python block is the output that the example must print. In console
blocks the lines after a `$ command` are its output. In expected output `...` stands for any text
within a line or, alone on a line, for any number of lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

RUNNABLE: Final = frozenset({"python", "console", "bash", "sh"})
_FENCE: Final = re.compile(r"^(```+)\s*(\S*)\s*(.*)$")
_MARKER: Final = re.compile(r"^<!--\s*(skip|background|file|prepare):\s*(.*?)\s*-->$")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block and the comment before it: its marker ("" for none) and note."""

    line: int
    language: str
    info: str
    body: str
    marker: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a console block, with the output that the page shows."""

    line: int
    text: str
    output: tuple[str, ...]


def read_snippets(page: str) -> Iterator[Snippet]:
    lines = page.splitlines()
    marker = note = ""
    at = 0
    while at < len(lines):
        line = lines[at]
        if found := _MARKER.match(line.strip()):
            marker, note = found.groups()
        elif found := _FENCE.match(line):
            fence, language, info = found.groups()
            start = at + 1
            at = start
            while lines[at].strip() != fence:
                at += 1
            yield Snippet(start, language, info, "\n".join(lines[start:at]) + "\n", marker, note)
            marker = note = ""
        elif line.strip():
            marker = note = ""
        at += 1


def read_commands(snippet: Snippet) -> Iterator[Command]:
    """Yield the commands of a console block, with a backslash joining lines."""
    text: str | None = None
    output: list[str] = []
    line = snippet.line
    for number, one in enumerate(snippet.body.splitlines(), snippet.line + 1):
        if text is not None and text.endswith("\\") and not output:
            text += "\n" + one.removeprefix("> ")
        elif one.startswith("$ "):
            if text is not None:
                yield Command(line, text, tuple(output))
            text, output, line = one[2:], [], number
        else:
            assert text is not None, f"line {number}: a console block must begin with `$ command`"
            output.append(one)
    if text is not None:
        yield Command(line, text, tuple(output))


def agrees(expected: tuple[str, ...], actual: str) -> bool:
    """Tell whether the output is the page's; widths of gaps do not count."""
    pattern = ""
    for line in expected:
        words = " ".join(line.split())
        if words == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part.strip()) for part in words.split("...")) + r"\n"
    squeezed = "".join(" ".join(line.split()) + "\n" for line in actual.rstrip().splitlines())
    # `a ... b` must accept `a b` too; gaps around an ellipsis are part of it.
    return re.fullmatch(pattern.rstrip(), squeezed) is not None
