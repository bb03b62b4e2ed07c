"""Reading the runnable examples out of a Markdown page.

A fenced block with the language python, console, bash or sh is an example. A comment right before it changes what is
done with it:

    <!-- skip: reason -->          it cannot run here, and this is why
    <!-- background: reason -->    start it (a program, or one command), and stop it at the end of the page
    <!-- file: NAME -->            (any language) save it as NAME for the examples after it
    <!-- prepare: COMMAND -->      run this first; readers have it already

A block ```text output after a python block is what that must print. In console blocks the lines after a `$ command` are its
output. In expected output `...` stands for anything, within a line or (alone on a line) for any number of lines.
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
    """One fenced block. `marker` is "", "skip", "background", "file" or "prepare", `note` the text after it."""

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
    """Every fenced block of a page, in order."""
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
    """The commands of a console block. A trailing backslash continues a command on the next line."""
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
    """Whether the output is what the page shows. Spaces at the ends of lines, and how wide a gap is, do not count."""
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
