"""The state of one rendering: its output, its meter, and its variables."""

from __future__ import annotations

from typing import Final

from aether_trio.model.templates.budget import Meter, TemplateBudget
from aether_trio.model.templates.errors import RenderFault
from aether_trio.model.templates.formatting import sprint_one
from aether_trio.model.templates.placeholders import Printed, placeholder
from aether_trio.model.templates.values import NO_VALUE, Uint8, printable_text, size_of

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


class Frame:
    """The variables of one execution of a template, where the newest of a name wins."""

    __slots__ = ("_declared", "_values", "rendering")

    def __init__(self, rendering: Rendering, dot: object) -> None:
        self.rendering = rendering
        self._declared: list[str] = []
        self._values: dict[str, list[object]] = {"$": [dot]}

    def declare(self, name: str, value: object) -> None:
        self._declared.append(name)
        self._values.setdefault(name, []).append(value)

    def mark(self) -> int:
        """Return how many variables there are, for `forget`."""
        return len(self._declared)

    def forget(self, mark: int) -> None:
        """Forget the variables declared since a mark."""
        declared = self._declared
        while len(declared) > mark:
            self._values[declared.pop()].pop()

    def read(self, name: str, offset: int) -> object:
        """Return a variable's value; RenderFault if its declaration was not executed."""
        try:
            return self._values[name][-1]
        except (KeyError, IndexError):
            raise RenderFault(f"undefined variable: {name!a}", offset) from None

    def assign(self, name: str, value: object, offset: int) -> None:
        """Give the newest variable of a name a value; RenderFault if there is none."""
        self.read(name, offset)
        self._values[name][-1] = value

    def rebind(self, names: tuple[str, ...], values: tuple[object, ...]) -> None:
        """Give the variables that were declared last, in this order, values."""
        depth: dict[str, int] = {}
        for name, value in zip(reversed(names), reversed(values), strict=True):
            depth[name] = depth.get(name, 0) + 1
            self._values[name][-depth[name]] = value
