"""Prints for all commands; escapes control characters in participants' texts.

Keys, names, reasons and progress are chosen by participants, and a terminal obeys the control
characters in them. So no module of the command line prints otherwise than with these functions
(ruff bans `click.echo`, `print` and rich elsewhere): text goes out with its control characters
escaped, a table takes texts and no markup, and JSON stays JSON.

Commands end when their output is closed, as `head` closes it: a function of this module raises
OutputClosed, and `run_client` ends a command that only waits. A command that serves others uses
`announce`, which goes on. When its log is JSON, what it announces is a line of the log
(json_lines.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import click

if TYPE_CHECKING:
    import trio

T = TypeVar("T")

_OBEYED: Final = (
    "\x7f-\x9f"  # DEL and C1, which has one-character forms of CSI and OSC
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the order of letters
    "\u2028\u2029"  # ends of lines
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # not seen at all
    "\ud800-\udfff"  # cannot be written
)
_CONTROL: Final = re.compile(f"[\x00-\x1f{_OBEYED}]")
_CONTROL_BUT_LINES: Final = re.compile(f"[\x00-\x08\x0b-\x1f{_OBEYED}]")
_DEFAULT_WIDTH: Final = 80
"""Columns of a terminal that does not say how many it has."""
_LOOK_S: Final = 0.5
"""Between two looks at whether the output is closed."""
UNCONFIRMED: Final = "not confirmed within"
"""What stands in an answer before the names of nodes that have not confirmed a change."""


class OutputClosed(BaseException):
    """A command's output has no reader. Not an Exception, so that no handler takes it."""


class OutputFailed(OutputClosed):
    """A command's output cannot be written, as to a full disk; the text says why."""


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def visible(text: str, *, lines: bool = False) -> str:
    """Return `text` on one line, with its control characters escaped.

    Characters that change the order of letters are escaped too. With `lines` tabs and ends of lines
    stay.
    """
    pattern = _CONTROL_BUT_LINES if lines else _CONTROL
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, err: bool = False, lines: bool = False, end: str = "\n") -> None:
    """Print one line (several with `lines`), at once. Raises OutputClosed."""
    _write(visible(text, lines=lines) + end, err=err)


def warn_unconfirmed(message: str) -> None:
    """Name the nodes that have not confirmed a change, if its answer names any."""
    _, caveat, nodes = message.partition(UNCONFIRMED)
    if caveat:
        say(f"warning: {caveat}{nodes}", err=True)


class Announcements:
    """Where `announce` writes: to the output, or, with `log`, to the log."""

    log: ClassVar[Callable[[str, str, Mapping[str, object]], None] | None] = None
    """Called with a level, a text of one line, and fields."""


def announce(
    text: str,
    *,
    err: bool = False,
    lines: bool = False,
    level: str = "info",
    fields: Mapping[str, object] | None = None,
) -> None:
    """Print as `say` does, and do nothing when the output is closed.

    In a log the text is its first line, and `fields` are the rest; without them `details` has it.
    """
    if Announcements.log is not None:
        first, *rest = text.split("\n")
        details = {"details": [line.strip() for line in rest]} if rest else {}
        Announcements.log(level, first, details if fields is None else fields)
        return
    with contextlib.suppress(OutputClosed):
        say(text, err=err, lines=lines)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a JSON document. Raises OutputClosed."""
    say_json(json.dumps(value, indent=indent, ensure_ascii=False))


def say_json(document: str) -> None:
    """Print JSON text, with characters that a terminal obeys as escapes of JSON."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    pattern = _CONTROL_BUT_LINES if utf8 else _NOT_ASCII
    _write(pattern.sub(lambda found: json.dumps(found[0])[1:-1], document) + "\n", err=False)


_NOT_ASCII: Final = re.compile("[^\t\n\r\x20-\x7e]")


def print_bytes(value: bytes) -> None:
    """Print a value: the bytes as they are for a program, escaped for a terminal."""
    if is_terminal():
        say(value.decode(errors="backslashreplace").removesuffix("\n"), lines=True)
        return
    if sys.stdout is None:  # closed by the shell
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise output_failed(error, err=False) from None


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    empty: str,
    *,
    whole: Sequence[str] | None = None,
    numbers: bool = False,
) -> None:
    """Print a table of texts, or the notice `empty` when it has no rows.

    `whole` names the columns with ids, topics and names, which are never folded; by default it is
    the first one. Where they leave no room for the others on a terminal, each row becomes a few
    lines. A pipe gets a row on one line, whatever its length. With `numbers` all columns but the
    first are aligned at their ends.
    """
    from aether_trio.cli.layout import Table

    table = Table(columns, [[visible(cell) for cell in row] for row in rows], whole, numbers=numbers)
    if not table.rows:
        say(empty, err=True)
        return
    width = terminal_width()
    _write("".join(f"{line}\n" for line in table.lines(width, bold=width is not None and _has_styles())), err=False)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and texts, a line for each. Words are never folded."""
    from aether_trio.cli.layout import fact_lines

    shown = [(visible(name), visible(text)) for name, text in facts]
    _write("".join(f"{line}\n" for line in fact_lines(shown, terminal_width())), err=False)


def terminal_width() -> int | None:
    """Return the columns of the terminal that is standard output, None for a pipe."""
    if not is_terminal():
        return None
    with contextlib.suppress(KeyError, ValueError):
        if (told := int(os.environ["COLUMNS"])) > 0:
            return told
    with contextlib.suppress(OSError, ValueError):
        if (asked := os.get_terminal_size(sys.stdout.fileno()).columns) > 0:
            return asked
    return _DEFAULT_WIDTH


def _has_styles() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def progress_line(text: str) -> None:
    """Write over the last line of standard error, which is a terminal."""
    with contextlib.suppress(OutputClosed):
        _write(f"\r\x1b[2K{visible(text)}", err=True)


def _write(text: str, *, err: bool) -> None:
    try:
        click.echo(text, nl=False, err=err)
    except OSError as error:
        raise output_failed(error, err=err) from None


def output_failed(error: OSError, *, err: bool) -> OutputClosed:
    """Return what ends a command that cannot write."""
    if isinstance(error, BrokenPipeError):
        return OutputClosed()
    return OutputFailed(f"standard {'error' if err else 'output'} cannot be written: {error.strerror or error}")


def run_client(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run a client command with `trio.run`; raise OutputClosed with a closed output."""

    import trio

    async def watched() -> T:
        scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(_cancel_when_closed, scope)
        with scope:
            return await main(*args)
        raise OutputClosed

    return trio.run(watched)


async def _cancel_when_closed(scope: trio.CancelScope) -> None:
    await wait_output_closed()
    scope.cancel()


async def wait_output_closed() -> None:
    """Return once standard output has no reader; never for a file."""
    import trio

    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        await trio.sleep_forever()
    poll = select.poll()
    # Asked for nothing, it tells of errors alone, not of room or of input.
    poll.register(descriptor, 0)
    while not poll.poll(0):  # noqa: ASYNC110  # no event tells of it on every system
        await trio.sleep(_LOOK_S)


def leave_closed_output() -> None:
    """Let the interpreter flush its closed output without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
            continue
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
