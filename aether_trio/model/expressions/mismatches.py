"""Finds operations of expressions that fail for the types of what they read.

A value has a kind: number (an int or a float), int, float, string, bool, array or map; None is
unknown, and nothing is said of it. What is declared may be nil all the same, so nil is left out:
an operation is wrong if it fails for each other value that its operands may have.

The numbers of JSON are floats: `%`, take() and the bit functions need int().
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from aether_trio.model.expressions.checker import TESTS
from aether_trio.model.expressions.parser import PREDICATES
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
    Total,
    Unary,
    Within,
    spine,
)

NUMBERS: Final = frozenset({"number", "int", "float"})
WORDS: Final = {
    "string": "a text",
    "bool": "a bool",
    "array": "a list",
    "map": "a map",
    **dict.fromkeys(NUMBERS, "a number"),
}
"""The kinds as errors name them."""
_KINDS: Final = frozenset(WORDS)
_COMPOUND: Final = frozenset({"bool", "array", "map"})
_TEXTS: Final = frozenset({"string"})
_LISTS: Final = frozenset({"array"})
_MAPS: Final = frozenset({"map"})
_INTS: Final = frozenset({"number", "int"})
"""What may be an int."""
_GIVES: Final = frozenset({"sum", "reduce", "find", "findLast"})
"""What gives a value that it has got."""
_NEED_TEXTS: Final = frozenset({"matches", "contains", "startsWith", "endsWith"})
_ORDERS: Final = frozenset({"<", ">", "<=", ">="})
_LOGIC: Final = frozenset({"&&", "||", "and", "or"})
_NEVER: Final = {
    "+": _COMPOUND,
    **dict.fromkeys(_ORDERS, _COMPOUND),
    **dict.fromkeys(("-", "*", "/", "**", "^", ".."), _COMPOUND | _TEXTS),
    "%": _COMPOUND | _TEXTS | {"float"},
    **dict.fromkeys(_NEED_TEXTS, _KINDS - _TEXTS),
}
"""The kinds with which an operator fails, whatever the other operand is."""


def _texts(count: int) -> tuple[frozenset[str], ...]:
    return (_TEXTS,) * count


_TAKES: Final[dict[str, tuple[frozenset[str], ...]]] = {
    "len": (_TEXTS | _LISTS | _MAPS,),
    **dict.fromkeys(("abs", "ceil", "floor", "round"), (NUMBERS,)),
    **dict.fromkeys(("int", "float"), (NUMBERS | _TEXTS,)),
    **dict.fromkeys(("upper", "lower", "toBase64", "fromBase64", "fromJSON", "duration", "timezone"), _texts(1)),
    **dict.fromkeys(
        ("trim", "trimPrefix", "trimSuffix", "indexOf", "lastIndexOf", "hasPrefix", "hasSuffix"), _texts(2)
    ),
    **dict.fromkeys(("split", "splitAfter"), (*_texts(2), NUMBERS)),
    "replace": (*_texts(3), NUMBERS),
    "repeat": (_TEXTS, NUMBERS),
    "join": (_LISTS, _TEXTS),
    "date": _texts(3),
    "take": (_LISTS, _INTS),
    **dict.fromkeys(("keys", "values", "toPairs"), (_MAPS,)),
    **dict.fromkeys(("fromPairs", "reverse", "uniq", "flatten"), (_LISTS,)),
    **dict.fromkeys(("bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr"), (_INTS, _INTS)),
    "bitnot": (_INTS,),
}
"""The kinds that each argument of a builtin may have; those that take any kind are left out."""
_TAKES_ALL: Final = {"concat": _LISTS, **dict.fromkeys(("mean", "median"), NUMBERS | _LISTS)}
"""The same of builtins with any number of arguments."""


class Typed(Protocol):
    """What is declared of a value."""

    @property
    def kind(self) -> str | None:
        """Its kind, None if it is not known."""

    def field(self, name: str) -> Typed | None:
        """Return what is declared of a field of a map."""

    def element(self) -> Typed | None:
        """Return what is declared of the elements of a list."""


Look: TypeAlias = Callable[[str], Typed | None]
"""Returns what is declared of a variable."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An operation that fails with the types of what it reads; `offset` is its place."""

    message: str
    offset: int


@dataclass(frozen=True, slots=True)
class _Known:
    kind: str | None = None
    typed: Typed | None = None


_UNKNOWN: Final = _Known()
_BOOL: Final = _Known("bool")


def find_mismatches(root: SyntaxNode, look: Look) -> tuple[list[Mismatch], str | None]:
    """Return what is wrong with a folded tree, and the kind of its value.

    The kind is None where it is not known. Of `a and b` it is that of b if this is no bool, though
    the value may be false.
    """
    found = _Finder(look)
    kind = found.visit(root).kind
    if isinstance(root, Binary) and root.operator in _LOGIC and kind is None:
        kind = found.right_of_logic
    return found.mismatches, kind


class _Finder:
    """Walks a tree once, with the variables and elements around the current node."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.mismatches: list[Mismatch] = []
        self.variables: list[tuple[str, _Known]] = []
        self.elements: list[_Known] = []
        self.right_of_logic: str | None = None
        self.visitors: dict[type[SyntaxNode], Callable[..., _Known]] = {
            Name: self.name,
            Pointer: self.pointer,
            Unary: self.unary,
            Binary: self.binary,
            MemberAccess: self.member,
            Chain: lambda node: self.visit(node.node),
            Slice: self.slice,
            Call: self.call,
            Builtin: self.builtin,
            Conditional: self.conditional,
            Let: self.let,
            Statements: lambda node: [self.visit(one) for one in node.nodes][-1],
            Array: self.array,
            Mapping: self.mapping,
            Within: self.within,
            Total: self.total,
        }

    def visit(self, node: SyntaxNode) -> _Known:
        visitor = self.visitors.get(type(node))
        known = _UNKNOWN if visitor is None else visitor(node)
        if known.kind is None and (
            isinstance(node, Literal) or (isinstance(node, Builtin) and node.name not in _GIVES)
        ):
            kind = node.nature.kind  # what the check of the tree knows without declarations
            return _Known(kind) if kind in _KINDS else _UNKNOWN
        return known

    def wrong(self, message: str, node: SyntaxNode) -> None:
        self.mismatches.append(Mismatch(message, node.offset))

    # -- what is read ------------------------------------------------------------------------------

    def name(self, node: Name) -> _Known:
        for name, known in reversed(self.variables):
            if name == node.name:
                return known
        return _known(self.look(node.name)) if node.name != "$env" else _UNKNOWN

    def pointer(self, node: Pointer) -> _Known:
        return self.elements[-1] if not node.name and self.elements else _UNKNOWN

    def member(self, node: MemberAccess) -> _Known:
        base, key = self.visit(node.node), self.visit(node.key)
        literal = node.key.value if isinstance(node.key, Literal) else None
        if base.kind == "map":
            if key.kind not in (None, "string") and _has_texts_for_keys(node.node, base):
                self.wrong(f"a key of a map is a text, not {WORDS[str(key.kind)]}", node.key)
            return (
                _known(base.typed.field(literal)) if base.typed is not None and isinstance(literal, str) else _UNKNOWN
            )
        if base.kind == "array":
            if key.kind is not None and key.kind not in NUMBERS and literal is None:
                self.wrong(f"an index is a number, not {WORDS[key.kind]}", node.key)
            return _element(base)
        return _UNKNOWN

    def let(self, node: Let) -> _Known:
        self.variables.append((node.name, self.visit(node.value)))
        known = self.visit(node.body)
        self.variables.pop()
        return known

    # -- operators ---------------------------------------------------------------------------------

    def unary(self, node: Unary) -> _Known:
        known = self.visit(node.operand)
        if node.operator in ("!", "not"):
            if known.kind not in (None, "bool"):
                self.wrong(f"'{node.operator}' does not take {WORDS[str(known.kind)]}", node)
            return _BOOL
        if node.operator == "-" and known.kind is not None and known.kind not in NUMBERS:
            self.wrong(f"'-' does not take {WORDS[known.kind]}", node)
            return _UNKNOWN
        return known

    def binary(self, node: Binary) -> _Known:
        first, chain = spine(node)
        known = before = self.visit(first)
        for one in chain:
            right = self.visit(one.right)
            # In a chain of and, each operand but the last has to be a bool.
            known = self.operator(one, before if one.operator in _LOGIC else known, right)
            before = right
        return known

    def operator(self, node: Binary, left: _Known, right: _Known) -> _Known:
        operator = node.operator
        if operator == "??":
            return left if left == right else _Known(left.kind) if left.kind == right.kind else _UNKNOWN
        if operator in ("==", "!="):
            return _BOOL
        if operator == "in":
            if right.kind is not None and right.kind not in ("array", "map"):
                self.wrong(f"'in' looks into a list or a map, not into {WORDS[right.kind]}", node)
            elif left.kind not in (None, "string") and _has_texts_for_keys(node.right, right):
                self.wrong(f"a key of a map is a text, not {WORDS[str(left.kind)]}", node)
            return _BOOL
        if operator in _LOGIC:
            return self.logic(node, left, right)
        kinds = (left.kind, right.kind)
        never = _NEVER.get(operator, frozenset())
        mixed = (operator == "+" or operator in _ORDERS) and "string" in kinds and bool(NUMBERS & set(kinds))
        if operator in _NEED_TEXTS and None in kinds:
            return _BOOL  # with nil it is false
        if mixed or left.kind in never or right.kind in never:
            told = " and ".join("something unknown" if kind is None else WORDS[kind] for kind in kinds)
            hint = ": numbers of JSON need int()" if operator == "%" and not {*kinds} & (_COMPOUND | _TEXTS) else ""
            self.wrong(f"'{operator}' does not take {told}{hint}", node)
        return _Known(_result(operator, kinds))

    def logic(self, node: Binary, left: _Known, right: _Known) -> _Known:
        """Check the left operand: what is on the right may be the value of the whole."""
        if left.kind not in (None, "bool"):
            told = "something unknown" if right.kind is None else WORDS[right.kind]
            self.wrong(f"'{node.operator}' does not take {WORDS[str(left.kind)]} and {told}", node)
            return _UNKNOWN
        self.right_of_logic = right.kind
        return _BOOL if right.kind == "bool" else _UNKNOWN

    def slice(self, node: Slice) -> _Known:
        base = self.visit(node.node)
        for bound in (node.start, node.stop):
            known = _UNKNOWN if bound is None else self.visit(bound)
            if bound is not None and known.kind is not None and known.kind not in NUMBERS:
                self.wrong(f"the bound of a slice is a number, not {WORDS[known.kind]}", bound)
        if base.kind not in (None, "string", "array"):
            self.wrong(f"{WORDS[str(base.kind)]} cannot be sliced", node)
            return _UNKNOWN
        return base

    def within(self, node: Within) -> _Known:
        known = self.visit(node.left)
        if known.kind not in (None, "string"):
            self.wrong(f"'in' looks for a text here, not for {WORDS[str(known.kind)]}", node)
        return _BOOL

    def total(self, node: Total) -> _Known:
        for one in node.nodes:
            self.visit(one)
        return _UNKNOWN

    def conditional(self, node: Conditional) -> _Known:
        condition = self.visit(node.condition)
        if condition.kind not in (None, "bool"):
            self.wrong(f"a condition is a bool, not {WORDS[str(condition.kind)]}", node.condition)
        yes, no = self.visit(node.yes), self.visit(node.no)
        return yes if yes == no else _Known(yes.kind) if yes.kind == no.kind else _UNKNOWN

    # -- calls and literals ------------------------------------------------------------------------

    def call(self, node: Call) -> _Known:
        if isinstance(node.callee, MemberAccess):
            self.visit(node.callee.node)
        for argument in node.arguments:
            self.visit(argument)
        return _UNKNOWN

    def builtin(self, node: Builtin) -> _Known:
        if node.name in PREDICATES:
            return self.predicate_call(node)
        given = [self.visit(argument) for argument in node.arguments]
        name = node.name
        takes = _TAKES.get(name, ())
        if name in _TAKES_ALL:
            takes = (_TAKES_ALL[name],) * len(given)
        elif name in ("max", "min") and len(given) > 1:
            takes = (NUMBERS | _LISTS,) * len(given)
        for argument, known, kinds in zip(node.arguments, given, takes, strict=False):
            if known.kind is not None and known.kind not in kinds:
                hint = ": use int()" if known.kind == "float" and kinds is _INTS else ""
                self.wrong(f"{name}() does not take {WORDS[known.kind]} there{hint}", argument)
        if name in ("first", "last"):
            return _element(given[0])
        if name == "abs" and given[0].kind in NUMBERS:
            return given[0]
        return _UNKNOWN

    def predicate_call(self, node: Builtin) -> _Known:
        name, first = node.name, node.arguments[0]
        collection = self.visit(first)
        if collection.kind in NUMBERS or collection.kind == "bool":
            self.wrong(f"{name}() takes a list, not {WORDS[str(collection.kind)]}", first)
        if len(node.arguments) > 1:
            predicate = node.arguments[1]
            assert isinstance(predicate, Predicate)
            self.elements.append(_element(collection))
            body = self.visit(predicate.body)
            self.elements.pop()
            if name in TESTS and body.kind not in (None, "bool"):
                self.wrong(f"the predicate of {name}() gives {WORDS[str(body.kind)]}, not a bool", predicate)
        for argument in node.arguments[2:]:
            self.visit(argument)
        if name in ("filter", "sortBy") and collection.kind == "array":
            return collection
        return _element(collection) if name in ("find", "findLast") else _UNKNOWN

    def array(self, node: Array) -> _Known:
        for one in node.nodes:
            self.visit(one)
        return _Known("array")

    def mapping(self, node: Mapping) -> _Known:
        for key, value in node.pairs:
            self.visit(key)
            self.visit(value)
        return _Known("map")


def _known(typed: Typed | None) -> _Known:
    return _UNKNOWN if typed is None or typed.kind is None else _Known(typed.kind, typed)


def _has_texts_for_keys(node: SyntaxNode, known: _Known) -> bool:
    """Return whether a node is a map of JSON; builtins make others."""
    return isinstance(node, Mapping) or (known.kind == "map" and known.typed is not None)


def _element(collection: _Known) -> _Known:
    if collection.kind != "array" or collection.typed is None:
        return _UNKNOWN
    return _known(collection.typed.element())


def _result(operator: str, kinds: tuple[str | None, str | None]) -> str | None:
    """Return the kind of what an operator gives, if it gives anything."""
    if operator in _ORDERS or operator in _NEED_TEXTS:
        return "bool"
    if operator == "..":
        return "array"
    if operator == "%":
        return "int"
    if operator in ("/", "**", "^"):
        return "float"
    one, other = kinds
    if operator == "+" and one == other == "string":
        return "string"
    if one not in NUMBERS or other not in NUMBERS:
        return None
    if one == other:
        return one
    return "float" if "float" in kinds else "number"
