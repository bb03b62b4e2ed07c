"""Lays out tables and facts for a terminal of any width; ids stay on one line.

A cell of a `whole` column is an id, a topic or a name that a person copies. It is never folded and
never cut. The other columns share the rest of the width and are folded at spaces. Where the rest is
too narrow, each row becomes a few lines, one for each cell. Without a width (a pipe) every row is
one line with all that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len, chop_cells

_GAP: Final = 2
_NARROW: Final = 12
"""A column is not made narrower than this, or than its widest cell."""
_INDENT: Final = 2


class Table:
    """Rows of texts with one line each, under the names of their columns."""

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        whole: Sequence[str] | None = None,
        *,
        numbers: bool = False,
    ) -> None:
        self.columns = columns
        self.rows = rows
        self._whole = {0} if whole is None else {columns.index(name) for name in whole}
        self._numbers = numbers
        self._wanted = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]

    def lines(self, width: int | None, *, bold: bool = False) -> Iterator[str]:
        """Yield the lines for a terminal of `width` columns, or None for a pipe."""
        shown = list(range(len(self.columns)))
        if not self._fits(shown, width):
            said = [place for place in shown if place in self._whole or any(row[place] for row in self.rows)]
            shown = said or shown
        widths = self._widths(shown, width)
        if widths is None:
            yield from self._stacked(width)
            return
        for head in self._row(self.columns, shown, widths):
            yield f"\x1b[1m{head}\x1b[0m" if bold else head
        for row in self.rows:
            yield from self._row(row, shown, widths)

    def _fits(self, shown: Sequence[int], width: int | None) -> bool:
        return width is None or sum(self._wanted[place] + _GAP for place in shown) - _GAP <= width

    def _widths(self, shown: Sequence[int], width: int | None) -> dict[int, int] | None:
        """Return the widths of the columns, None when there is no room for all."""
        widths = {place: self._wanted[place] for place in shown}
        if width is None or self._fits(shown, width):
            return widths
        loose = [place for place in shown if place not in self._whole]
        room = width - _GAP * (len(shown) - 1) - sum(widths[place] for place in shown if place in self._whole)
        if room < sum(min(widths[place], _NARROW) for place in loose):
            return None
        # Narrow columns get all they want; the wide ones share what these leave.
        for number, place in enumerate(sorted(loose, key=widths.__getitem__)):
            widths[place] = min(widths[place], room // (len(loose) - number))
            room -= widths[place]
        return widths

    def _row(self, row: Sequence[str], shown: Sequence[int], widths: dict[int, int]) -> Iterator[str]:
        cells = {place: [row[place]] if place in self._whole else fold(row[place], widths[place]) for place in shown}
        for number in range(max(map(len, cells.values()))):
            parts = []
            for place in shown:
                text = cells[place][number] if number < len(cells[place]) else ""
                padding = " " * (widths[place] - cell_len(text))
                parts.append(padding + text if self._numbers and place else text + padding)
            yield (" " * _GAP).join(parts).rstrip()

    def _stacked(self, width: int | None) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            if number:
                yield ""
            yield from fact_lines([(name, cell) for name, cell in zip(self.columns, row, strict=True) if cell], width)


def fact_lines(facts: Sequence[tuple[str, str]], width: int | None) -> Iterator[str]:
    """Yield lines of names and texts, which are folded at spaces and nowhere else."""
    behind = max((cell_len(name) for name, _ in facts), default=0) + _GAP
    for name, text in facts:
        if width is None:
            yield (name + " " * (behind - cell_len(name)) + text).rstrip()
            continue
        longest = max(map(cell_len, text.split(" ")))
        if behind + longest <= width:
            head, indent = name + " " * (behind - cell_len(name)), behind
        else:
            yield name
            head = " " * (_INDENT if _INDENT + longest <= width else 0)
            indent = len(head)
        for line in fold(text, width - indent, words=False):
            yield (head + line).rstrip()
            head = " " * indent


def fold(text: str, width: int, *, words: bool = True) -> list[str]:
    """Fold a text at spaces into lines of `width` cells; `words`: longer words, too."""
    if cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for number, word in enumerate(text.split(" ")):
        longer = f"{line} {word}" if number else word
        if number and cell_len(longer) > width:
            lines.append(line)
            longer = word
        if words and cell_len(longer) > width:
            *full, longer = chop_cells(longer, max(width, 2))
            lines += full
        line = longer
    return [*lines, line]
