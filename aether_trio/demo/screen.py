"""Prints the demo: a transcript, a progress line at the bottom, and the claims.

In a terminal the progress line is drawn over; elsewhere each report is a new line. Colours and
width are the terminal's (rich decides; NO_COLOR is honoured), and without UTF-8 the marks are
ASCII.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aether_trio.demo import texts
from aether_trio.demo.checks import DemoCheck
from aether_trio.demo.planner_and_window import Line

_STYLES: Final = {texts.USER: "magenta", texts.PLANNER: "cyan", texts.RESEARCHER: "green"}
_BAR: Final = 24
_TIME: Final = 6
_WHO: Final = 20
_MAX_WIDTH: Final = 110


class Screen:
    """Prints the demo; the progress line is drawn within it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=False)
        self.console.width = min(self.console.width, _MAX_WIDTH)
        self._utf8 = self.console.encoding.lower().replace("-", "") in {"utf8", "utf16"}
        self._started = time.monotonic()
        self._progress: Text | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._bottom, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.freeze()

    def freeze(self) -> None:
        """Leave the progress line where it is; later lines are printed below it."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None
            if self._progress is not None:
                self.console.print(self._progress)

    def _bottom(self) -> Text:
        return self._progress or Text("")

    def _mark(self, mark: str, plain: str) -> str:
        return mark if self._utf8 else plain

    def _row(self, who: Text | None, what: Text) -> None:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=_TIME, justify="right", style="dim")
        if who is not None:
            row.add_column(width=_WHO)
        row.add_column(ratio=1)
        cells = [what] if who is None else [who, what]
        row.add_row(f"{self.elapsed_s:.1f}s", *cells)
        self.console.print(row)

    def title(self, text: str) -> None:
        self.console.print(Text(text, style="bold"))
        self.console.print()

    def introduce(self, name: str, identity: str, what: str) -> None:
        """Print a participant or the gateway, and what it is."""
        row = Table.grid(padding=(0, 1))
        row.add_column(width=10, style=_STYLES.get(name, "yellow") + " bold")
        row.add_column(width=23)
        row.add_column(ratio=1, style="dim")
        row.add_row(name, identity, what)
        self.console.print(row)

    def blank(self) -> None:
        self.console.print()

    def line(self, line: Line) -> None:
        """Print a line of the conversation."""
        speaker = line.speaker.split("::")[-2]
        who = Text(speaker, style=_STYLES.get(speaker, "blue") + " bold")
        if line.to:
            who.append(f" {self._mark('→', '>')} ", style="dim")
            who.append(line.to, style=_STYLES.get(line.to, "blue"))
        self._row(who, Text(line.text))

    def event(self, text: str, note: str = "") -> None:
        """Print what was done to a process, and what follows from it."""
        what = Text(f"{self._mark('──', '--')} {text}", style="yellow")
        if note:
            what.append(f": {note}", style="not bold dim")
        self._row(None, what)

    def progress(self, update: Any) -> None:
        """Draw a progress report that the user's window received."""
        self.draw(texts.RESEARCHER, update.step.sequence, update.step.total_steps, update.completion, update.summary)

    def draw(self, name: str, done: int, total: int, completion: float, summary: str) -> None:
        """Draw how far a participant or a workflow is; `completion` is from 0 to 1."""
        filled = round(_BAR * min(1.0, max(0.0, completion)))
        bar = Text("  ")
        bar.append(f"{name} ", style=_STYLES.get(name, "yellow") + " bold")
        bar.append(self._mark("━", "#") * filled, style=_STYLES.get(name, "yellow"))
        bar.append(self._mark("─", ".") * (_BAR - filled), style="dim")
        bar.append(f" {done} of {total}", style="bold")
        bar.append(f"  {summary}", style="dim")
        bar.truncate(self.console.width)
        self._progress = bar
        if self._live is not None:
            self._live.refresh()
        else:
            self.console.print(bar)

    def verdict(self, checks: Sequence[DemoCheck]) -> None:
        """Print each claim of the demo, and what was observed."""
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, style="dim")
        for check in checks:
            mark = self._mark("✓", "+") if check.is_true else self._mark("✗", "X")
            style = "green" if check.is_true else "red bold"
            table.add_row(Text(mark, style=style), Text(check.claim, style="" if check.is_true else style), check.seen)
        self.console.print(table)

    def judged(self, checks: Sequence[DemoCheck]) -> bool:
        """Print the claims and whether all are true; return that."""
        self.blank()
        self.verdict(checks)
        self.blank()
        if not all(check.is_true for check in checks):
            self.failure("Not all claims of the demo are true.")
            return False
        self.note(f"All of these claims are true, after {self.elapsed_s:.1f} s.")
        return True

    def note(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def suggest(self, command: str, why: str = "") -> None:
        """Print a command, unwrapped for copying, and what it is for."""
        self.console.print(Text(f"  {command}"), soft_wrap=True)
        if why:
            self.console.print(Text(f"      {why}", style="dim"))

    def page(self, lines: Sequence[str]) -> None:
        """Print a document, the first line of which is its title."""
        bar = self._mark("│", "|")
        for number, line in enumerate(lines):
            text = Text(f"{' ' * (_TIME + 1)}{bar} ", style="dim")
            self.console.print(text.append(line, style="not dim" if number else "not dim bold"))

    def failure(self, text: str) -> None:
        """Print why the demo ends."""
        self.freeze()
        self.console.print(Text(f"{self._mark('✗', 'X')} {text}", style="red bold"), soft_wrap=True)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started
