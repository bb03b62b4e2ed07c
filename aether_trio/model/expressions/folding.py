"""Rewrites a checked tree as expr-lang's optimizer does, where it is seen.

`x && false` is false whatever x is, `x in ["a"]` takes strings only, `7 % 0` fails when compiled,
`filter(list, p)[0]` stops at the first. The rest of its rewriting changes no result.
"""

from __future__ import annotations

from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.operators import minus, modulo, negate, plus, times
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
    Predicate,
    Slice,
    Statements,
    SyntaxNode,
    Total,
    Unary,
    Within,
    spine,
)

_ARITHMETIC = {"+": plus, "-": minus, "*": times}
_FOUND = {0: "find", -1: "findLast"}


def fold(node: SyntaxNode) -> SyntaxNode:
    """Return a node with all below it rewritten; faults for a remainder by zero."""
    nature = node.nature
    folded = _fold(node)
    folded.nature = nature if folded.nature.unknown else folded.nature
    return folded


def _fold(node: SyntaxNode) -> SyntaxNode:
    if isinstance(node, Binary):
        return _chain(node)
    if isinstance(node, Unary):
        node.operand = fold(node.operand)
        return _unary(node)
    if isinstance(node, MemberAccess):
        node.node, node.key = fold(node.node), fold(node.key)
        return _member(node)
    if isinstance(node, Builtin):
        node.arguments = [fold(one) for one in node.arguments]
        return _builtin(node)
    if isinstance(node, Predicate):
        node.body = fold(node.body)
    elif isinstance(node, Chain):
        node.node = fold(node.node)
    elif isinstance(node, Slice):
        node.node = fold(node.node)
        node.start = node.start and fold(node.start)
        node.stop = node.stop and fold(node.stop)
    elif isinstance(node, Call):
        node.callee = fold(node.callee)
        node.arguments = [fold(one) for one in node.arguments]
    elif isinstance(node, Conditional):
        node.condition, node.yes, node.no = fold(node.condition), fold(node.yes), fold(node.no)
    elif isinstance(node, Let):
        node.value, node.body = fold(node.value), fold(node.body)
    elif isinstance(node, (Statements, Array)):
        node.nodes = [fold(one) for one in node.nodes]
    elif isinstance(node, Mapping):
        node.pairs = [(fold(key), fold(value)) for key, value in node.pairs]
    return node


def _literal(node: SyntaxNode, value: object) -> Literal:
    literal = Literal(node.offset, value)  # type: ignore[arg-type]
    literal.nature = node.nature
    return literal


def _is(node: SyntaxNode, *types: type) -> bool:
    return isinstance(node, Literal) and type(node.value) in types


def _unary(node: Unary) -> SyntaxNode:
    operand = node.operand
    if isinstance(operand, Literal):
        if node.operator in ("!", "not") and _is(operand, bool):
            return _literal(node, not operand.value)
        if node.operator in ("-", "+") and _is(operand, int, float):
            return _literal(node, negate(operand.value) if node.operator == "-" else operand.value)
    return node


def _chain(node: Binary) -> SyntaxNode:
    left, chain = spine(node)
    left = fold(left)
    for one in chain:
        strings = _strings(one)
        one.left, one.right = left, fold(one.right)
        if strings is not None:
            left = Within(one.offset, left, strings)
            left.nature = one.nature
        else:
            left = _operator(one)
    return left


def _strings(node: Binary) -> frozenset[str] | None:
    """Return the strings of `x in ["a", "b"]`, or None."""
    if node.operator != "in" or not isinstance(node.right, Array) or not node.right.nodes:
        return None
    found = [one.value for one in node.right.nodes if isinstance(one, Literal) and isinstance(one.value, str)]
    return frozenset(found) if len(found) == len(node.right.nodes) else None


def _operator(node: Binary) -> SyntaxNode:
    left, right, operator = node.left, node.right, node.operator
    if operator in ANDS or operator in ORS:
        neutral = operator in ANDS
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Literal) and one.value is neutral:
                return other
        if any(isinstance(one, Literal) and one.value is (not neutral) for one in (left, right)):
            return _literal(node, not neutral)
        return node
    if not isinstance(left, Literal) or not isinstance(right, Literal):
        return node
    if operator == "==" and type(left.value) is type(right.value) and _is(left, int, str, bool):
        return _literal(node, left.value == right.value)
    numbers = _is(left, int, float) and _is(right, int, float)
    if operator in _ARITHMETIC and (numbers or (operator == "+" and _is(left, str) and _is(right, str))):
        return _literal(node, _ARITHMETIC[operator](left.value, right.value, EvaluationBudget()))
    if operator == "%" and _is(left, int) and _is(right, int):
        try:
            return _literal(node, modulo(left.value, right.value, EvaluationBudget()))
        except Fault as fault:
            raise fault.at(node.offset) from None
    return node


def _member(node: MemberAccess) -> SyntaxNode:
    base = node.node
    if (
        not node.optional
        and isinstance(node.key, Literal)
        and type(node.key.value) is int
        and isinstance(base, Builtin)
        and base.name == "filter"
        and node.key.value in _FOUND
    ):
        return _renamed(node, base, _FOUND[node.key.value], throws=True)
    return node


def _builtin(node: Builtin) -> SyntaxNode:
    first = node.arguments[0] if node.arguments else None
    if isinstance(first, Builtin) and len(node.arguments) == 1:
        if first.name == "filter" and node.name in ("first", "last", "len"):
            name = {"first": "find", "last": "findLast", "len": "count"}[node.name]
            return _renamed(node, first, name, throws=False)
        if first.name == "map" and node.name == "sum":
            return _renamed(node, first, "sum", throws=False)
    if node.name != "sum" or len(node.arguments) > 1 or not isinstance(first, Array) or len(first.nodes) < 2:
        return node
    constant = all(_is(one, int, float, str, bool) for one in first.nodes)
    return node if constant else Total(node.offset, first.nodes)


def _renamed(node: SyntaxNode, base: Builtin, name: str, *, throws: bool) -> Builtin:
    found = Builtin(node.offset, name, base.arguments, throws)
    found.nature = node.nature
    return found
