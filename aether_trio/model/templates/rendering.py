"""The state of one rendering: its output, its meter, and its variables."""

from __future__ import annotations

from typing import Final

from aether_trio.model.templates.budget import Meter, TemplateBudget
from aether_trio.model.templates.formatting import sprint_one
from aether_trio.model.templates.placeholders import Printed, placeholder
from aether_trio.model.templates.values import NO_VALUE, Uint8, printable_text, size_of
from aether_trio.model.templates.variables import VariableStack

_TYPED: Final = frozenset({bool, int, float, Uint8, type(NO_VALUE)})


class Rendering:
    """Collects the output; with `printed` a list, printed values become placeholders."""

    __slots__ = ("meter", "pieces", "printed")

    def __init__(self, budget: TemplateBudget, printed: list[Printed] | None) -> None:
        self.meter = Meter(budget)
        self.pieces: list[str] = []
        self.printed = printed

    def write(self, text: str, size: int) -> None:
        """Append literal text of `size` bytes."""
        self.meter.take_room(size)
        self.pieces.append(text)

    def print_value(self, value: object) -> None:
        """Append what an action yields, in its default form or as a placeholder."""
        if type(value) is str:
            text = value
        elif value is NO_VALUE:
            text = "<no value>"
        else:
            text = sprint_one(value, self.meter)
        self.meter.take_room(len(text) if text.isascii() else size_of(text))
        if self.printed is not None:
            mark = placeholder(len(self.printed))
            self.meter.take_room(len(mark))
            self.printed.append(Printed(printable_text(text), type(value) not in _TYPED))
            text = mark
        self.pieces.append(text)

    def text(self) -> str:
        return "".join(self.pieces)


class Frame(VariableStack[object]):
    """The variables of one execution of a template, and the rendering it belongs to."""

    __slots__ = ("rendering",)

    def __init__(self, rendering: Rendering, dot: object) -> None:
        super().__init__(dot)
        self.rendering = rendering
