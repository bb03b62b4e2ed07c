"""Names on a stack, where the newest of a name wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class VariableStack(Generic[_Value]):
    """Variables of one template: they are forgotten up to a mark when a block ends.

    Every operation takes the same time for any number of variables. KeyError is raised for a name
    that is not declared.
    """

    __slots__ = ("_declared", "_values")

    def __init__(self, dot: _Value) -> None:
        """Declare `$`, the cursor with which a template begins."""
        self._declared: list[str] = ["$"]
        self._values: dict[str, list[_Value]] = {"$": [dot]}

    def __contains__(self, name: str) -> bool:
        return bool(self._values.get(name))

    def __getitem__(self, name: str) -> _Value:
        values = self._values[name]
        if not values:
            raise KeyError(name)
        return values[-1]

    def __setitem__(self, name: str, value: _Value) -> None:
        """Give the newest variable of a name another value."""
        if name not in self:
            raise KeyError(name)
        self._values[name][-1] = value

    def get(self, name: str) -> _Value | None:
        """Return the newest value of a name, None if it is not declared."""
        values = self._values.get(name)
        return values[-1] if values else None

    def declare(self, name: str, value: _Value) -> None:
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

    def rebind(self, names: Sequence[str], values: Sequence[_Value]) -> None:
        """Give the variables that were declared last, in this order, other values."""
        depths: dict[str, int] = {}
        for name, value in zip(reversed(names), reversed(values), strict=True):
            depths[name] = depths.get(name, 0) + 1
            self._values[name][-depths[name]] = value
