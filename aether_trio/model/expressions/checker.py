"""Checks a tree before it runs: known types, names of functions, patterns, `let`.

Each node gets its nature. The rules are those of expr-lang without a declared environment, with one
more: a function that does not exist is an error here, as a call of it cannot succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.methods import METHODS
from aether_trio.model.expressions.natures import (
    BOOL,
    DURATION,
    FLOAT,
    FUNCTION,
    GROUPS,
    INT,
    LIST,
    MAP,
    NIL,
    STRING,
    TIME,
    UNKNOWN,
    Nature,
    list_of,
)
from aether_trio.model.expressions.parser import PREDICATES
from aether_trio.model.expressions.signatures import SIGNATURES, check_key
from aether_trio.model.expressions.syntax import (
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
    Unary,
    spine,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILTINS: Final = frozenset(PREDICATES) | frozenset(SIGNATURES)
_LITERALS: Final = {type(None): NIL, bool: BOOL, int: INT, float: FLOAT, str: STRING}
TESTS: Final = frozenset(
    {"all", "none", "any", "one", "filter", "count", "find", "findIndex", "findLast", "findLastIndex"}
)


def check(root: SyntaxNode, check_pattern: Callable[[str], object], variables: Collection[str] = frozenset()) -> Nature:
    """Set the nature of each node; fault at the first that cannot be right.

    `check_pattern` raises ValueError for a regular expression that is none. `variables` come before
    builtins with their names.
    """
    return _Checker(check_pattern, variables).visit(root)


class _Checker:
    """Walks a tree once, with the variables and predicates around the current node."""

    def __init__(self, check_pattern: Callable[[str], object], variables: Collection[str]) -> None:
        self.check_pattern = check_pattern
        self.variables: list[tuple[str, Nature]] = []
        self.declared = variables
        self.collections: list[tuple[Nature, frozenset[str]]] = []

    def visit(self, node: SyntaxNode) -> Nature:
        nature = _VISITORS[type(node)](self, node)
        node.nature = nature
        return nature

    @contextmanager
    def predicate(self, collection: Nature, pointers: frozenset[str]) -> Iterator[None]:
        self.collections.append((collection, pointers))
        yield
        self.collections.pop()

    def name(self, node: Name) -> Nature:
        for name, nature in reversed(self.variables):
            if name == node.name:
                return nature
        return FUNCTION if node.name in BUILTINS and node.name not in self.declared else UNKNOWN

    def pointer(self, node: Pointer) -> Nature:
        if not self.collections:
            raise Fault("# is known only in the predicate of a builtin", node.offset)
        collection, pointers = self.collections[-1]
        if not node.name:
            return collection.of_elements()
        if node.name not in pointers:
            known = " and ".join(f"#{one}" for one in sorted(pointers)) or "only # itself"
            raise Fault(f"#{node.name} is not known here: this builtin has {known}", node.offset)
        return INT if node.name == "index" else UNKNOWN

    def unary(self, node: Unary) -> Nature:
        nature = self.visit(node.operand)
        if node.operator in ("!", "not"):
            if nature.unknown or nature == BOOL:
                return BOOL
        elif nature.unknown or nature.number:
            return nature
        raise Fault(f"'{node.operator}' does not take {nature}", node.offset)

    def binary(self, node: Binary) -> Nature:
        first, chain = spine(node)
        nature = self.visit(first)
        for one in chain:
            nature = self.operator(one, nature, self.visit(one.right))
            one.nature = nature
        return nature

    def operator(self, node: Binary, left: Nature, right: Nature) -> Nature:
        operator = node.operator
        if operator == "??":
            return self.coalesced(left, right)
        if operator == "in":
            found = self.within(node, left, right)
        else:
            if operator == "matches" and isinstance(node.right, Literal) and isinstance(node.right.value, str):
                try:
                    self.check_pattern(node.right.value)
                except ValueError as error:
                    raise Fault(f"the pattern is no regular expression: {error}", node.right.offset) from None
            found = _operated(operator, left, right)
        if found is None:
            raise Fault(f"'{operator}' does not take {left} and {right}", node.offset)
        return found

    @staticmethod
    def coalesced(left: Nature, right: Nature) -> Nature:
        if left.nil:
            return right
        return left if right.nil or right.assignable_to(left) else UNKNOWN

    @staticmethod
    def within(node: Binary, left: Nature, right: Nature) -> Nature | None:
        if right.kind == "map":
            try:
                check_key(right, left)
            except Fault as fault:
                raise fault.at(node.offset) from None
            return BOOL
        if right.kind == "array":
            element = right.of_elements()
            if not left.comparable_to(element):
                raise Fault(f"{left} is never in a list whose elements are each {element}", node.offset)
            return BOOL
        if right.unknown or (left.unknown and right.kind in ("string", "time", "location")):
            return BOOL
        if left == STRING and right.kind in ("time", "location"):
            return BOOL
        return None

    def member(self, node: MemberAccess) -> Nature:
        if isinstance(node.node, Name) and node.node.name == "$env":
            self.visit(node.key)
            return UNKNOWN
        base = self.visit(node.node)
        key = self.visit(node.key)
        if base.unknown:
            return UNKNOWN
        if base.kind == "map":
            try:
                check_key(base, key)
            except Fault as fault:
                raise fault.at(node.key.offset) from None
            return base.of_elements()
        if base.kind == "array":
            if not key.unknown and key.kind != "int":
                raise Fault(f"an index is an int, not {key}", node.key.offset)
            return base.of_elements()
        if isinstance(node.key, Literal) and isinstance(node.key.value, str):
            if node.key.value in METHODS.get(base.kind, ()):
                return FUNCTION
            close = get_close_matches(node.key.value, METHODS.get(base.kind, ()), 1)
            hint = f": did you mean '{close[0]}'?" if close else ""
            raise Fault(f"{base} has no '{node.key.value[:40]}'{hint}", node.key.offset)
        raise Fault(f"{base} has no elements", node.offset)

    def slice(self, node: Slice) -> Nature:
        base = self.visit(node.node)
        bounds = [bound for bound in (node.start, node.stop) if bound is not None]
        if not base.unknown and base.kind not in ("string", "array"):
            raise Fault(f"{base} cannot be sliced", node.offset)
        for bound in bounds:
            nature = self.visit(bound)
            if not (base.unknown or nature.unknown or nature.kind == "int"):
                raise Fault(f"the bound of a slice is an int, not {nature}", bound.offset)
        return base

    def call(self, node: Call) -> Nature:
        if isinstance(node.callee, Name):
            raise self.no_function(node.callee)
        assert isinstance(node.callee, MemberAccess)
        self.visit(node.callee)
        given = [self.visit(argument) for argument in node.arguments]
        base = node.callee.node.nature
        name = node.callee.key
        if not isinstance(name, Literal) or base.kind not in METHODS:
            if base.unknown or base.kind == "map":
                return UNKNOWN
            raise Fault(f"{base} has no methods", node.offset)
        method = METHODS[base.kind][str(name.value)]
        if len(given) != len(method.takes):
            raise Fault(f"{name.value}() takes {len(method.takes)} arguments, not {len(given)}", node.offset)
        for argument, nature, wanted in zip(node.arguments, given, method.takes, strict=True):
            if nature.nil or not (nature.unknown or nature.assignable_to(wanted)):
                raise Fault(f"{name.value}() takes {wanted}, not {nature}", argument.offset)
        return method.result

    def no_function(self, callee: Name) -> Fault:
        close = get_close_matches(callee.name, sorted(BUILTINS), 1)
        hint = f": did you mean '{close[0]}'?" if close else ""
        return Fault(f"there is no function '{callee.name[:40]}'{hint}", callee.offset)

    def builtin(self, node: Builtin) -> Nature:
        if node.name in PREDICATES:
            return self.predicate_call(node)
        given = [self.visit(argument) for argument in node.arguments]
        if node.name == "get" and given and isinstance(node.arguments[0], Name) and node.arguments[0].name == "$env":
            given[0] = UNKNOWN
        try:
            return SIGNATURES[node.name](given)
        except Fault as fault:
            raise fault.at(node.offset) from None

    def predicate_call(self, node: Builtin) -> Nature:
        name = node.name
        first = node.arguments[0]
        collection = self.visit(first)
        if not collection.unknown and collection.kind != "array":
            raise Fault(f"{name}() takes a list, not {collection}", first.offset)
        body = UNKNOWN
        if len(node.arguments) > 1:
            predicate = node.arguments[1]
            assert isinstance(predicate, Predicate)
            pointers = {"map": frozenset({"index"}), "reduce": frozenset({"index", "acc"})}.get(name, frozenset())
            with self.predicate(collection, pointers):
                body = self.visit(predicate.body)
            if body.nil:
                raise Fault(f"the predicate of {name}() gives always nil", predicate.offset)
            if name in TESTS and not body.unknown and body != BOOL:
                raise Fault(f"the predicate of {name}() gives {body}, not a bool", predicate.offset)
        if len(node.arguments) > 2:
            self.visit(node.arguments[2])
        return self.result(name, collection, body, len(node.arguments))

    @staticmethod
    def result(name: str, collection: Nature, body: Nature, count: int) -> Nature:
        if name in ("all", "none", "any", "one"):
            return BOOL
        if name in ("count", "findIndex", "findLastIndex"):
            return INT
        if name == "filter":
            return LIST if collection.unknown else list_of(collection.of_elements())
        if name == "map":
            return list_of(body)
        if name in ("find", "findLast"):
            return collection.of_elements()
        if name == "sum":
            return body if count > 1 else collection.of_elements()
        if name == "groupBy":
            return GROUPS
        return collection if name == "sortBy" else body

    def conditional(self, node: Conditional) -> Nature:
        condition = self.visit(node.condition)
        if not condition.unknown and condition != BOOL:
            raise Fault(f"a condition is a bool, not {condition}", node.condition.offset)
        yes, no = self.visit(node.yes), self.visit(node.no)
        if yes.nil:
            return no
        if no.nil:
            return yes
        if not yes.assignable_to(no):
            return UNKNOWN
        if yes.kind == "array":
            one, other = yes.of_elements(), no.of_elements()
            if not (one.assignable_to(other) and other.assignable_to(one)):
                return LIST
        return yes

    def let(self, node: Let) -> Nature:
        if node.name in BUILTINS:
            raise Fault(f"'{node.name}' is a builtin: give the variable another name", node.offset)
        if any(name == node.name for name, _ in self.variables):
            raise Fault(f"'{node.name}' is a variable already: give this one another name", node.offset)
        self.variables.append((node.name, self.visit(node.value)))
        nature = self.visit(node.body)
        self.variables.pop()
        return nature

    def array(self, node: Array) -> Nature:
        natures = [self.visit(one) for one in node.nodes]
        if not natures:
            return list_of(UNKNOWN)
        kinds = {UNKNOWN if nature.nil or nature == UNKNOWN else nature.kind for nature in natures}
        return list_of(natures[-1]) if len(kinds) == 1 else LIST

    def mapping(self, node: Mapping) -> Nature:
        for key, value in node.pairs:
            self.visit(key)
            self.visit(value)
        return MAP


_VISITORS: Final[dict[type[SyntaxNode], Callable[[_Checker, Any], Nature]]] = {
    Literal: lambda _, node: _LITERALS[type(node.value)],
    Name: _Checker.name,
    Pointer: _Checker.pointer,
    Unary: _Checker.unary,
    Binary: _Checker.binary,
    MemberAccess: _Checker.member,
    Chain: lambda checker, node: checker.visit(node.node),
    Slice: _Checker.slice,
    Call: _Checker.call,
    Builtin: _Checker.builtin,
    Conditional: _Checker.conditional,
    Let: _Checker.let,
    Statements: lambda checker, node: [checker.visit(one) for one in node.nodes][-1],
    Array: _Checker.array,
    Mapping: _Checker.mapping,
}
"""A table of bound methods in each checker would be a circle, which the collector has to find."""


def _operated(operator: str, left: Nature, right: Nature) -> Nature | None:
    """Return what an operator gives, or None where it takes no such operands."""
    numbers = left.number and right.number
    kinds = (left.kind, right.kind)
    if operator in ("==", "!="):
        return BOOL if left.comparable_to(right) else None
    if operator in ("&&", "||", "and", "or"):
        return BOOL if kinds == ("bool", "bool") or left.perhaps(right, "bool") else None
    if operator in ("<", ">", "<=", ">="):
        same = left.kind == right.kind and left.kind in ("string", "time", "duration")
        return BOOL if numbers or same or left.perhaps(right, "number", "string", "time", "duration") else None
    if operator in ("/", "**", "^"):
        return FLOAT if numbers or left.perhaps(right, "number") else None
    if operator == "%":
        return INT if kinds == ("int", "int") or left.perhaps(right, "int") else None
    if operator == "..":
        return list_of(INT) if kinds == ("int", "int") or left.perhaps(right, "int") else None
    if operator in ("matches", "contains", "startsWith", "endsWith"):
        return BOOL if kinds == ("string", "string") or left.perhaps(right, "string") else None
    if numbers:
        return FLOAT if "float" in kinds else INT
    if kinds in _SUMS[operator]:
        return _SUMS[operator][kinds]
    return UNKNOWN if left.perhaps(right, *_SUMMANDS[operator]) else None


_SUMS: Final[dict[str, dict[tuple[str, str], Nature]]] = {
    "+": {
        ("string", "string"): STRING,
        ("time", "duration"): TIME,
        ("duration", "time"): TIME,
        ("duration", "duration"): DURATION,
    },
    "-": {("time", "time"): DURATION, ("time", "duration"): TIME, ("duration", "duration"): DURATION},
    "*": {
        ("int", "duration"): DURATION,
        ("float", "duration"): DURATION,
        ("duration", "int"): DURATION,
        ("duration", "float"): DURATION,
        ("duration", "duration"): DURATION,
    },
}
_SUMMANDS: Final = {
    "+": ("number", "string", "time", "duration"),
    "-": ("number", "time", "duration"),
    "*": ("number", "duration"),
}
