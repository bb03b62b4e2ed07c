"""The loops of the builtins with predicates: filter, map, reduce and the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from aether_trio.model.expressions import operators
from aether_trio.model.expressions.builtins import is_descending, sorted_by
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.values import AnyMap, described, utf8

Frame: TypeAlias = list[Any]
"""The environment, the budget, the clock, then the slots of variables and predicates."""
Code: TypeAlias = Callable[[Frame], Any]
"""What a node is compiled to."""


@dataclass(slots=True, frozen=True)
class Loop:
    """What the loop of a builtin needs.

    The element is in the frame's `slot`, its index and the accumulator in the next two. `each` is
    the operations of one round, `reads` whether the elements are read, `third` the third argument.
    """

    values: Code
    body: Code
    slot: int
    each: int
    offset: int
    third: Code | None
    throws: bool
    reads: bool

    def elements(self, frame: Frame) -> list[Any]:
        """Return the elements to go over: those of a list, or the bytes of a string."""
        values = self.values(frame)
        if isinstance(values, list):
            return values
        if type(values) is str:
            self.charge(frame, len(values) // max(self.each, 1), made=True)
            return list(utf8(values))
        if isinstance(values, dict) and not (values and self.reads):
            return [None] * len(values)
        raise Fault(f"a list is needed here, not {described(values)}", self.offset)

    def charge(self, frame: Frame, count: int, *, made: bool = False) -> None:
        """Take the operations of some elements, and the slots of a list of them."""
        try:
            frame[1].spend(count * self.each)
            if made:
                frame[1].make(8 * count)
        except Fault as fault:
            raise fault.at(self.offset) from None

    def decisions(self, frame: Frame, *, backwards: bool = False) -> Iterator[tuple[int, bool]]:
        """Yield the index of each element and what the predicate, a test, says about it."""
        elements = self.elements(frame)
        body, slot, each, budget = self.body, self.slot, self.each, frame[1]
        indices = range(len(elements))
        for index in reversed(indices) if backwards else indices:
            budget.operations -= each
            if budget.operations < 0:
                self.charge(frame, 0)
            frame[slot] = elements[index]
            frame[slot + 1] = index
            value = body(frame)
            if value is not True and value is not False:
                raise Fault(f"a predicate gives a bool, not {described(value)}", self.offset)
            yield index, value


def _decides(stop: bool, found: bool) -> Callable[[Loop], Code]:
    """Return the maker of all, any and none: the first decision of a kind counts."""

    def make(loop: Loop) -> Code:
        def run(frame: Frame) -> Any:
            for _, value in loop.decisions(frame):
                if value is stop:
                    return found
            return not found

        return run

    return make


def _one(loop: Loop) -> Code:
    return lambda frame: sum(value for _, value in loop.decisions(frame)) == 1


def _count(loop: Loop) -> Code:
    return lambda frame: sum(value for _, value in loop.decisions(frame))


def _filter(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        slot = loop.slot
        found = []
        for _, value in loop.decisions(frame):
            if value:
                found.append(frame[slot])
        try:
            frame[1].make(8 * len(found))
        except Fault as fault:
            raise fault.at(loop.offset) from None
        return found

    return run


def _find(*, backwards: bool, position: bool) -> Callable[[Loop], Code]:
    def make(loop: Loop) -> Code:
        def run(frame: Frame) -> Any:
            for index, value in loop.decisions(frame, backwards=backwards):
                if value:
                    return index if position else frame[loop.slot]
            if loop.throws:
                raise Fault("the index is out of range: filter() finds nothing", loop.offset)
            return None

        return run

    return make


def _map(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        elements = loop.elements(frame)
        loop.charge(frame, len(elements), made=True)
        body, slot = loop.body, loop.slot
        made = []
        for index, element in enumerate(elements):
            frame[slot] = element
            frame[slot + 1] = index
            made.append(body(frame))
        return made

    return run


def _sum(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        elements = loop.elements(frame)
        loop.charge(frame, len(elements))
        body, slot, budget = loop.body, loop.slot, frame[1]
        total: Any = 0
        for element in elements:
            frame[slot] = element
            value = body(frame)
            try:
                total = operators.plus(value, total, budget)
            except Fault as fault:
                raise fault.at(loop.offset) from None
        return total

    return run


def _group_by(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        elements = loop.elements(frame)
        loop.charge(frame, len(elements), made=True)
        body, slot = loop.body, loop.slot
        groups = AnyMap(lists=True)
        for element in elements:
            frame[slot] = element
            key = body(frame)
            try:
                group = groups.exact.get((type(key), key)) if key.__hash__ else None
                if group is None:
                    group = []
                    groups.put(key, group)
            except Fault as fault:
                raise fault.at(loop.offset) from None
            group.append(element)  # type: ignore[attr-defined]
        return groups

    return run


def _sort_by(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        elements = loop.elements(frame)
        loop.charge(frame, len(elements), made=True)
        body, slot = loop.body, loop.slot
        keys = []
        try:
            descending = loop.third is not None and is_descending(loop.third(frame))
        except Fault as fault:
            raise fault.at(loop.offset) from None
        for element in elements:
            frame[slot] = element
            keys.append(body(frame))
        try:
            return sorted_by(frame[1], elements, keys, descending=descending)
        except Fault as fault:
            raise fault.at(loop.offset) from None

    return run


def _reduce(loop: Loop) -> Code:
    def run(frame: Frame) -> Any:
        elements = loop.elements(frame)
        loop.charge(frame, len(elements))
        body, slot = loop.body, loop.slot
        start = 0
        if loop.third is not None:
            total = loop.third(frame)
        elif elements:
            total, start = elements[0], 1
        else:
            raise Fault("reduce() of an empty list needs a value to begin with", loop.offset)
        for index in range(start, len(elements)):
            frame[slot] = elements[index]
            frame[slot + 1] = index
            frame[slot + 2] = total
            total = body(frame)
        return total

    return run


LOOPS: Final[dict[str, Callable[[Loop], Code]]] = {
    "all": _decides(stop=False, found=False),
    "any": _decides(stop=True, found=True),
    "none": _decides(stop=True, found=False),
    "one": _one,
    "count": _count,
    "filter": _filter,
    "find": _find(backwards=False, position=False),
    "findIndex": _find(backwards=False, position=True),
    "findLast": _find(backwards=True, position=False),
    "findLastIndex": _find(backwards=True, position=True),
    "map": _map,
    "sum": _sum,
    "groupBy": _group_by,
    "sortBy": _sort_by,
    "reduce": _reduce,
}
