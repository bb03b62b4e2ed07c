"""Makes closures of a tree: each takes a frame and returns the value of its node.

A frame is a list: the environment, the budget, the clock, then a slot for each variable of `let`
and three for each predicate around a node: the element, its index, the accumulator. A closure adds
the place of its node to a fault of its operator; those of the nodes below have one already.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any, Final, TypeAlias

from aether_trio.model.expressions import operators
from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.builtins import FUNCTIONS, SPECIAL
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.loops import LOOPS, Code, Frame, Loop
from aether_trio.model.expressions.methods import in_zone, method_of
from aether_trio.model.expressions.natures import INT, STRING
from aether_trio.model.expressions.operators import fetch, key_text
from aether_trio.model.expressions.parser import PREDICATES
from aether_trio.model.expressions.syntax import (
    ANDS,
    ORS,
    Array,
    Binary,
    Builtin,
    Call,
    Chain,
    Conditional,
    Let,
    Literal,
    Mapping,
    MemberAccess,
    Name,
    Pointer,
    Predicate,
    Slice,
    Statements,
    SyntaxNode,
    Total,
    Unary,
    Within,
    spine,
)
from aether_trio.model.expressions.values import NilList, described, equal, is_nil, less

RegexCompiler: TypeAlias = Callable[[str], Callable[[str], bool]]
"""Makes the search for a pattern, linear in the text; raises ValueError for a bad one."""

ENVIRONMENT: Final = 0
CLOCK: Final = 2
FIRST_SLOT: Final = 3
_ITEM, _INDEX, _ACCUMULATOR = 0, 1, 2
_MOST_EXACT: Final = 1 << 53
_LONG_CHAIN: Final = 4
_SEARCHED: Final = 6  # the search for a pattern: 64 characters are one operation
_PATTERN: Final = 200  # operations for a pattern that is known only when the expression runs
_READERS: Final = frozenset({"filter", "find", "findLast", "groupBy", "sortBy"})


class _Skipped:
    """The value of the rest of a chain whose `?.` met nil."""


_SKIPPED: Final = _Skipped()


class ExpressionCompiler:
    """Compiles one tree; `slots`, `cost` and `special` describe the program then."""

    def __init__(self, regex: RegexCompiler) -> None:
        self.regex = regex
        self.slots = 0  # how many the program needs
        self.used = 0  # how many are in use at the current node
        self.cost = 0  # operations of the piece without loops around the current node
        self.special = False  # whether a result may need `plain`
        self.variables: list[tuple[str, int]] = []
        self.predicates: list[int] = []
        self.read: set[int] = set()  # the slots of predicates whose `#` is read

    def compile(self, node: SyntaxNode) -> Code:
        """Return the closure of a node."""
        self.cost += 1
        return _MAKERS[type(node)](self, node)

    def allot(self, count: int) -> int:
        first = FIRST_SLOT + self.used
        self.used += count
        self.slots = max(self.slots, self.used)
        return first

    # Values.

    def literal(self, node: Literal) -> Code:
        value = node.value
        return lambda frame: value

    def name(self, node: Name) -> Code:
        name = node.name
        for variable, slot in reversed(self.variables):
            if variable == name:
                return _slot(slot)
        if name == "$env":
            return _slot(ENVIRONMENT)
        return lambda frame: frame[0].get(name)

    def pointer(self, node: Pointer) -> Code:
        kind = {"": _ITEM, "index": _INDEX, "acc": _ACCUMULATOR}[node.name]
        if kind == _ITEM:
            self.read.add(self.predicates[-1])
        return _slot(self.predicates[-1] + kind)

    def array(self, node: Array) -> Code:
        codes = [self.compile(one) for one in node.nodes]
        self.cost += len(codes)
        offset = node.offset

        def run(frame: Frame) -> Any:
            try:
                frame[1].make_list(len(codes))
            except Fault as fault:
                raise fault.at(offset) from None
            return [code(frame) for code in codes]

        return run

    def mapping(self, node: Mapping) -> Code:
        pairs = [(self.compile(key), self.compile(value), key.offset) for key, value in node.pairs]
        offset = node.offset

        def run(frame: Frame) -> Any:
            try:
                frame[1].make_list(2 * len(pairs))
            except Fault as fault:
                raise fault.at(offset) from None
            made: dict[str, Any] = {}
            for key, value, place in pairs:
                name = key(frame)
                if type(name) is not str:
                    raise Fault(f"a key of a map is a string, not {described(name)}", place)
                made.setdefault(name, value(frame))
            return made

        return run

    # Operators.

    def unary(self, node: Unary) -> Code:
        operand = self.compile(node.operand)
        offset = node.offset
        if node.operator == "+":
            return operand

        def invert(frame: Frame) -> Any:
            value = operand(frame)
            if value is True:
                return False
            if value is False:
                return True
            raise Fault(f"'not' takes a bool, not {described(value)}", offset)

        def negate(frame: Frame) -> Any:
            value = operand(frame)
            if type(value) is float:
                return -value
            try:
                return operators.negate(value)
            except Fault as fault:
                raise fault.at(offset) from None

        return negate if node.operator == "-" else invert

    def binary(self, node: Binary) -> Code:
        """Compile a chain of operators of one group, however long it is, without nesting."""
        first, chain = spine(node)
        self.cost += len(chain) - 1
        operator = node.operator
        if operator in ANDS or operator in ORS:
            codes = [self.compile(first), *(self.compile(one.right) for one in chain)]
            return _shortcut(codes, [one.offset for one in chain], stop=operator in ORS)
        if operator == "??":
            return _coalesce([self.compile(first), *(self.compile(one.right) for one in chain)])
        code = self.compile(first)
        if len(chain) <= _LONG_CHAIN:
            for one in chain:
                code = self.pair(code, one)
            return code
        steps = [self.step(one) for one in chain]

        def run(frame: Frame) -> Any:
            value = code(frame)
            for step in steps:
                value = step(frame, value)
            return value

        return run

    def step(self, node: Binary) -> Callable[[Frame, Any], Any]:
        """Compile an operator whose left operand a loop has."""
        right = self.compile(node.right)
        apply = self.applied(node)
        offset = node.offset

        def run(frame: Frame, left: Any) -> Any:
            other = right(frame)
            try:
                return apply(left, other, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None

        return run

    def pair(self, left: Code, node: Binary) -> Code:
        """Compile one operator; comparisons with a literal, as rules have, are quick."""
        if isinstance(node.right, Literal):
            quick = _compared(left, node, node.right.value)
            if quick is not None:
                self.cost += 1
                return quick
        if node.operator == "in" and isinstance(node.right, Binary) and node.right.operator == "..":
            inside = _in_span(left, node)
            if inside is not None:
                self.cost += 3
                return inside
        right = self.compile(node.right)
        apply = self.applied(node)
        offset = node.offset

        def run(frame: Frame) -> Any:
            one = left(frame)
            other = right(frame)
            try:
                return apply(one, other, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None

        return run

    def applied(self, node: Binary) -> Callable[[Any, Any, EvaluationBudget], Any]:
        """Return the function of an operator."""
        operator = node.operator
        if operator == "matches":
            if isinstance(node.right, Literal) and isinstance(node.right.value, str):
                found = self.regex(node.right.value)
                return lambda text, pattern, budget: _searched(found, text, budget)
            return self.search
        if operator in ("==", "!="):
            natures = {node.left.nature, node.right.nature}
            exact = int if natures == {INT} else str if natures == {STRING} else None
            same = equal if exact is None else _exactly(exact)
            return same if operator == "==" else lambda left, right, budget: not same(left, right, budget)
        return _APPLIED[operator]

    def search(self, text: Any, pattern: Any, budget: EvaluationBudget) -> bool:
        if is_nil(text) or is_nil(pattern):
            return False
        if type(text) is not str or type(pattern) is not str:
            raise Fault(f"'matches' does not take {described(text)} and {described(pattern)}")
        budget.spend(_PATTERN + len(pattern))
        try:
            return _searched(self.regex(pattern), text, budget)
        except ValueError as error:
            raise Fault(f"the pattern is no regular expression: {error}") from None

    def within(self, node: Within) -> Code:
        left, strings, offset = self.compile(node.left), node.strings, node.offset
        self.cost += 1

        def run(frame: Frame) -> Any:
            value = left(frame)
            try:
                return value in strings if type(value) is str else key_text(value) in strings
            except Fault:
                raise Fault(f"'in' looks for a string here, not for {described(value)}", offset) from None

        return run

    def total(self, node: Total) -> Code:
        codes, offset = [self.compile(one) for one in node.nodes], node.offset

        def run(frame: Frame) -> Any:
            values = [code(frame) for code in codes]
            found = values.pop()
            try:
                while values:
                    found = operators.plus(values.pop(), found, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None
            return found

        return run

    # Access.

    def member(self, node: MemberAccess) -> Code:
        path: list[str] = []
        base: SyntaxNode = node
        while isinstance(base, MemberAccess) and not base.optional and isinstance(base.key, Literal):
            if not isinstance(base.key.value, str):
                break
            path.append(base.key.value)
            base = base.node
        if path and isinstance(base, (Name, Pointer)) and not (isinstance(base, Name) and base.name == "$env"):
            self.cost += len(path)
            path.reverse()
            if len(path) == 1 and isinstance(base, Name) and base.name not in dict(self.variables):
                return _read(base.name, path[0], node.offset)
            return _path(self.compile(base), path, node.offset)
        return self.link(node, chained=False)

    def link(self, node: MemberAccess, *, chained: bool) -> Code:
        """Compile one access, which passes on that its chain was left."""
        base = self.linked(node.node, chained=chained)
        key = self.compile(node.key)
        offset, optional = node.offset, node.optional and chained

        def run(frame: Frame) -> Any:
            value = base(frame)
            if value is _SKIPPED or (optional and is_nil(value)):
                return _SKIPPED
            try:
                return fetch(value, key(frame), frame[1])
            except Fault as fault:
                raise fault.at(offset) from None

        return run

    def linked(self, node: SyntaxNode, *, chained: bool) -> Code:
        if chained and isinstance(node, MemberAccess):
            self.cost += 1
            return self.link(node, chained=True)
        if chained and isinstance(node, Call):
            self.cost += 1
            return self.called(node, chained=True)
        return self.compile(node)

    def chain(self, node: Chain) -> Code:
        code = self.linked(node.node, chained=True)

        def run(frame: Frame) -> Any:
            value = code(frame)
            return None if value is _SKIPPED or type(value) is NilList else value

        return run

    def slice(self, node: Slice) -> Code:
        base = self.compile(node.node)
        start = self.compile(node.start) if node.start is not None else None
        stop = self.compile(node.stop) if node.stop is not None else None
        offset = node.offset

        def run(frame: Frame) -> Any:
            whole = base(frame)
            last = None if stop is None else stop(frame)
            first = 0 if start is None else start(frame)
            if (start is not None and first is None) or (stop is not None and last is None):
                raise Fault("a bound of a slice is nil", offset)
            try:
                return operators.cut(whole, first, last, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None

        return run

    def call(self, node: Call) -> Code:
        return self.called(node, chained=False)

    def called(self, node: Call, *, chained: bool) -> Code:
        callee = node.callee
        assert isinstance(callee, MemberAccess)
        arguments = [self.compile(argument) for argument in node.arguments]
        base, key = self.linked(callee.node, chained=chained), self.compile(callee.key)
        offset, optional = node.offset, callee.optional and chained

        def run(frame: Frame) -> Any:
            given = [argument(frame) for argument in arguments]
            value = base(frame)
            if value is _SKIPPED or (optional and is_nil(value)):
                return _SKIPPED
            try:
                method = method_of(value, key(frame))
                if method is not None:
                    return method.call(value, given)
                found = fetch(value, key(frame), frame[1])
            except Fault as fault:
                raise fault.at(offset) from None
            raise Fault(f"{described(found)} cannot be called", offset)

        return run

    # Control.

    def conditional(self, node: Conditional) -> Code:
        condition, yes, no = self.compile(node.condition), self.compile(node.yes), self.compile(node.no)
        offset = node.condition.offset

        def run(frame: Frame) -> Any:
            value = condition(frame)
            if value is True:
                return yes(frame)
            if value is False:
                return no(frame)
            raise Fault(f"a condition is a bool, not {described(value)}", offset)

        return run

    def let(self, node: Let) -> Code:
        value = self.compile(node.value)
        slot = self.allot(1)
        self.variables.append((node.name, slot))
        body = self.compile(node.body)
        self.variables.pop()
        self.used -= 1

        def run(frame: Frame) -> Any:
            frame[slot] = value(frame)
            return body(frame)

        return run

    def sequence(self, node: Statements) -> Code:
        *before, last = [self.compile(one) for one in node.nodes]

        def run(frame: Frame) -> Any:
            for code in before:
                code(frame)
            return last(frame)

        return run

    # Builtins.

    def builtin(self, node: Builtin) -> Code:
        name, offset = node.name, node.offset
        self.special = self.special or name in SPECIAL
        if name in PREDICATES:
            return self.loop(node)
        codes = [self.compile(argument) for argument in node.arguments]
        if name == "now":
            return _now(codes, offset)
        function = FUNCTIONS[name]
        if len(codes) == 1:
            only = codes[0]

            def run_one(frame: Frame) -> Any:
                value = only(frame)
                try:
                    return function(frame[1], value)
                except Fault as fault:
                    raise fault.at(offset) from None

            return run_one

        def run(frame: Frame) -> Any:
            values = [code(frame) for code in codes]
            try:
                return function(frame[1], *values)
            except Fault as fault:
                raise fault.at(offset) from None

        return run

    def loop(self, node: Builtin) -> Code:
        """Compile a builtin with a predicate: its list, the predicate, the loop."""
        values = self.compile(node.arguments[0])
        third = self.compile(node.arguments[2]) if len(node.arguments) > 2 else None
        around = self.cost
        slot = self.allot(3)
        body: Code = _slot(slot)
        self.cost = 1
        if len(node.arguments) > 1:
            predicate = node.arguments[1]
            assert isinstance(predicate, Predicate)
            self.predicates.append(slot)
            body = self.compile(predicate.body)
            self.predicates.pop()
        self.used -= 3
        each, self.cost = self.cost, around
        reads = slot in self.read or node.name in _READERS or len(node.arguments) == (2 if node.name == "reduce" else 1)
        self.read.discard(slot)
        return LOOPS[node.name](Loop(values, body, slot, each, node.offset, third, node.throws, reads))


_MAKERS: Final[dict[type[SyntaxNode], Callable[[ExpressionCompiler, Any], Code]]] = {
    Literal: ExpressionCompiler.literal,
    Name: ExpressionCompiler.name,
    Pointer: ExpressionCompiler.pointer,
    Unary: ExpressionCompiler.unary,
    Binary: ExpressionCompiler.binary,
    MemberAccess: ExpressionCompiler.member,
    Chain: ExpressionCompiler.chain,
    Slice: ExpressionCompiler.slice,
    Call: ExpressionCompiler.call,
    Builtin: ExpressionCompiler.builtin,
    Conditional: ExpressionCompiler.conditional,
    Let: ExpressionCompiler.let,
    Statements: ExpressionCompiler.sequence,
    Array: ExpressionCompiler.array,
    Mapping: ExpressionCompiler.mapping,
    Within: ExpressionCompiler.within,
    Total: ExpressionCompiler.total,
}
"""A table of bound methods in each compiler would be a circle, which the collector has to find."""


def _slot(slot: int) -> Code:
    return lambda frame: frame[slot]


def _searched(found: Callable[[str], bool], text: Any, budget: EvaluationBudget) -> bool:
    """Return whether a pattern is found in a text; it is not in nil."""
    if type(text) is str:
        budget.spend(len(text) >> _SEARCHED)
        return found(text)
    if is_nil(text):
        return False
    raise Fault(f"'matches' takes a string, not {described(text)}")


def _now(codes: list[Code], offset: int) -> Code:
    def run(frame: Frame) -> Any:
        moment: datetime = frame[CLOCK]()
        for code in codes:
            zone = code(frame)
            if not isinstance(zone, tzinfo):
                raise Fault(f"now() takes a timezone(), not {described(zone)}", offset)
            moment = in_zone(moment, zone)
        return moment

    return run


def _read(first: str, second: str, offset: int) -> Code:
    """Compile `first.second` of the environment, the most common path."""

    def run(frame: Frame) -> Any:
        value = frame[0].get(first)
        if type(value) is dict:
            return value.get(second)
        try:
            return fetch(value, second, frame[1])
        except Fault as fault:
            raise fault.at(offset) from None

    return run


def _path(base: Code, path: list[str], offset: int) -> Code:
    """Compile reads of names, one after the other."""
    if len(path) == 1:
        only = path[0]

        def run_one(frame: Frame) -> Any:
            value = base(frame)
            if type(value) is dict:
                return value.get(only)
            try:
                return fetch(value, only, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None

        return run_one

    def run(frame: Frame) -> Any:
        value = base(frame)
        for name in path:
            if type(value) is dict:
                value = value.get(name)
                continue
            try:
                value = fetch(value, name, frame[1])
            except Fault as fault:
                raise fault.at(offset) from None
        return value

    return run


def _shortcut(codes: list[Code], offsets: list[int], *, stop: bool) -> Code:
    """Compile && or ||: the first operand that is `stop` is the result, or the last."""
    word = "||" if stop else "&&"
    if len(codes) == 2:
        left, right = codes
        place = offsets[0]

        def run_two(frame: Frame) -> Any:
            value = left(frame)
            if value is stop:
                return stop
            if value is True or value is False:
                return right(frame)
            raise Fault(f"'{word}' takes a bool, not {described(value)}", place)

        return run_two
    *before, last = codes
    placed = list(zip(before, offsets, strict=True))

    def run(frame: Frame) -> Any:
        for code, offset in placed:
            value = code(frame)
            if value is stop:
                return stop
            if value is not True and value is not False:
                raise Fault(f"'{word}' takes a bool, not {described(value)}", offset)
        return last(frame)

    return run


def _coalesce(codes: list[Code]) -> Code:
    *before, last = codes

    def run(frame: Frame) -> Any:
        for code in before:
            value = code(frame)
            if not is_nil(value):
                return value
        return last(frame)

    return run


def _compared(left: Code, node: Binary, value: Any) -> Code | None:
    """Compile a comparison with a literal, or return None where there is no quick one."""
    operator = node.operator
    number = type(value) in (int, float) and abs(value) < _MOST_EXACT
    if operator in ("==", "!="):
        wanted = operator == "=="
        known = node.left.nature
        if value is None:
            return lambda frame: is_nil(left(frame)) is wanted
        if type(value) is bool:
            return lambda frame: (left(frame) is value) is wanted
        if (known == node.right.nature and known in (INT, STRING)) or not (number or type(value) is str):
            return None
        if type(value) is str:
            return (lambda frame: left(frame) == value) if wanted else (lambda frame: left(frame) != value)

        def same(frame: Frame) -> Any:
            found = left(frame)
            return (found == value and type(found) is not bool) is wanted

        return same
    if number and operator in _ORDERS:
        order = _ORDERS[operator]
        exact = float(value)
        offset = node.offset

        def ordered(frame: Frame) -> Any:
            found = left(frame)
            if type(found) is not float:
                try:
                    return _APPLIED[operator](found, value, frame[1])
                except Fault as fault:
                    raise fault.at(offset) from None
            return order(found, exact)

        return ordered
    return None


def _in_span(left: Code, node: Binary) -> Code | None:
    """Compile `x in 1..9` without making the list."""
    bounds = node.right
    assert isinstance(bounds, Binary)
    if not isinstance(bounds.left, Literal) or not isinstance(bounds.right, Literal):
        return None
    low, high = bounds.left.value, bounds.right.value
    if type(low) is not int or type(high) is not int:
        return None

    def run(frame: Frame) -> Any:
        value = left(frame)
        if type(value) is int:
            return low <= value <= high
        return type(value) is float and value.is_integer() and low <= value <= high

    return run


def _exactly(kind: type) -> Callable[[Any, Any, EvaluationBudget], bool]:
    """Return the comparison of what is known to have a type, and has it unless nil."""

    def same(left: Any, right: Any, budget: EvaluationBudget) -> bool:
        for value in (left, right):
            if type(value) is not kind:
                raise Fault(f"{described(value)} is found where a {kind.__name__} is known to be")
        return bool(left == right)

    return same


def _not_less(left: Any, right: Any) -> bool:
    """Return whether a value is at or after another; NaN is neither."""
    return not less(left, right) and left == left and right == right  # noqa: PLR0124


def _add(left: Any, right: Any, budget: EvaluationBudget) -> Any:
    if type(left) is float and type(right) is float:
        return left + right
    return operators.plus(left, right, budget)


_APPLIED: Final[dict[str, Callable[[Any, Any, EvaluationBudget], Any]]] = {
    "+": _add,
    "-": operators.minus,
    "*": operators.times,
    "/": operators.divide,
    "%": operators.modulo,
    "**": operators.power,
    "^": operators.power,
    "..": operators.span,
    "in": operators.within,
    "contains": operators.contains,
    "startsWith": operators.starts_with,
    "endsWith": operators.ends_with,
    "<": lambda left, right, budget: less(left, right),
    ">": lambda left, right, budget: less(right, left),
    "<=": lambda left, right, budget: _not_less(right, left),
    ">=": lambda left, right, budget: _not_less(left, right),
}
_ORDERS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": float.__lt__,
    ">": float.__gt__,
    "<=": float.__le__,
    ">=": float.__ge__,
}
