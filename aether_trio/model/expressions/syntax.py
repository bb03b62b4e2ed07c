"""The syntax tree of an expression.

`offset` is the place of a node in the source, in characters. `height` bounds the recursion over a
tree: the left operands of a chain of operators of one group (`a + b + c`) are walked in a loop, so
they add nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.natures import UNKNOWN, Nature

MAX_HEIGHT: Final = 60
ANDS: Final = frozenset({"&&", "and"})
ORS: Final = frozenset({"||", "or"})


def group_of(operator: str) -> str:
    """Return which operators are walked in one loop with this one."""
    if operator in ANDS:
        return "and"
    if operator in ORS:
        return "or"
    return "coalesce" if operator == "??" else "strict"


@dataclass(slots=True, eq=False)
class SyntaxNode:
    """A part of an expression."""

    offset: int
    height: int = field(default=1, init=False)
    nature: Nature = field(default=UNKNOWN, init=False)  # what the check found out

    def above(self, *below: SyntaxNode | None) -> None:
        """Set the height above some nodes; faults where the tree gets too high."""
        self.rise(max((node.height for node in below if node is not None), default=0) + 1)

    def rise(self, height: int) -> None:
        """Set the height, which has a limit."""
        if height > MAX_HEIGHT:
            raise Fault(f"the expression is nested more than {MAX_HEIGHT} deep: split it with let", self.offset)
        self.height = height


@dataclass(slots=True, eq=False)
class Literal(SyntaxNode):
    """A constant: nil, a bool, an int, a float or a string."""

    value: bool | int | float | str | None


@dataclass(slots=True, eq=False)
class Name(SyntaxNode):
    """A variable of the environment or of `let`, or `$env`."""

    name: str


@dataclass(slots=True, eq=False)
class Pointer(SyntaxNode):
    """`#`, `#index` or `#acc` within a predicate; the name is empty for `#`."""

    name: str


@dataclass(slots=True, eq=False)
class Unary(SyntaxNode):
    """An operator before its operand."""

    operator: str
    operand: SyntaxNode

    def __post_init__(self) -> None:
        self.above(self.operand)


@dataclass(slots=True, eq=False)
class Binary(SyntaxNode):
    """An operator between two operands."""

    operator: str
    left: SyntaxNode
    right: SyntaxNode

    def __post_init__(self) -> None:
        left = self.left
        same = isinstance(left, Binary) and group_of(left.operator) == group_of(self.operator)
        self.rise(max(left.height if same else left.height + 1, self.right.height + 1))


@dataclass(slots=True, eq=False)
class MemberAccess(SyntaxNode):
    """`node.name`, `node[key]`, or with `?.`."""

    node: SyntaxNode
    key: SyntaxNode
    optional: bool

    def __post_init__(self) -> None:
        self.above(self.node, self.key)


@dataclass(slots=True, eq=False)
class Chain(SyntaxNode):
    """Where the rest of `a?.b.c` goes on with nil when a is nil."""

    node: SyntaxNode

    def __post_init__(self) -> None:
        self.above(self.node)


@dataclass(slots=True, eq=False)
class Slice(SyntaxNode):
    """`node[start:stop]`."""

    node: SyntaxNode
    start: SyntaxNode | None
    stop: SyntaxNode | None

    def __post_init__(self) -> None:
        self.above(self.node, self.start, self.stop)


@dataclass(slots=True, eq=False)
class Call(SyntaxNode):
    """A call of a member (`now().Year()`), or of a name that is no builtin."""

    callee: SyntaxNode
    arguments: list[SyntaxNode]

    def __post_init__(self) -> None:
        self.above(self.callee, *self.arguments)


@dataclass(slots=True, eq=False)
class Predicate(SyntaxNode):
    """The body that a builtin evaluates for each element."""

    body: SyntaxNode

    def __post_init__(self) -> None:
        self.above(self.body)


@dataclass(slots=True, eq=False)
class Builtin(SyntaxNode):
    """A call of a builtin; `throws` fails a find that finds nothing, as an index does."""

    name: str
    arguments: list[SyntaxNode]
    throws: bool = False

    def __post_init__(self) -> None:
        self.above(*self.arguments)


@dataclass(slots=True, eq=False)
class Conditional(SyntaxNode):
    """`condition ? yes : no`, or with if and else."""

    condition: SyntaxNode
    yes: SyntaxNode
    no: SyntaxNode

    def __post_init__(self) -> None:
        self.above(self.condition, self.yes, self.no)


@dataclass(slots=True, eq=False)
class Let(SyntaxNode):
    """`let name = value; body`."""

    name: str
    value: SyntaxNode
    body: SyntaxNode

    def __post_init__(self) -> None:
        self.above(self.value, self.body)


@dataclass(slots=True, eq=False)
class Statements(SyntaxNode):
    """`a; b`: the value of the last."""

    nodes: list[SyntaxNode]

    def __post_init__(self) -> None:
        self.above(*self.nodes)


@dataclass(slots=True, eq=False)
class Array(SyntaxNode):
    """`[a, b]`."""

    nodes: list[SyntaxNode]

    def __post_init__(self) -> None:
        self.above(*self.nodes)


@dataclass(slots=True, eq=False)
class Mapping(SyntaxNode):
    """`{key: value}`."""

    pairs: list[tuple[SyntaxNode, SyntaxNode]]

    def __post_init__(self) -> None:
        self.above(*(node for pair in self.pairs for node in pair))


@dataclass(slots=True, eq=False)
class Within(SyntaxNode):
    """`left in ["a", "b"]`, where all are strings: left must be one too."""

    left: SyntaxNode
    strings: frozenset[str]

    def __post_init__(self) -> None:
        self.above(self.left)


@dataclass(slots=True, eq=False)
class Total(SyntaxNode):
    """`sum([a, b])`: the values added from the last to the first."""

    nodes: list[SyntaxNode]

    def __post_init__(self) -> None:
        self.above(*self.nodes)


def spine(node: Binary) -> tuple[SyntaxNode, list[Binary]]:
    """Return the first operand of a chain of operators of one group, and the chain."""
    group = group_of(node.operator)
    chain = [node]
    left = node.left
    while isinstance(left, Binary) and group_of(left.operator) == group:
        chain.append(left)
        left = left.left
    chain.reverse()
    return left, chain
