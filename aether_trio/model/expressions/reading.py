"""Finds out what an expression reads, and which equalities it requires."""

from __future__ import annotations

from typing import Any, TypeAlias

from aether_trio.model.expressions.syntax import (
    ANDS,
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
    Predicate,
    Slice,
    Statements,
    SyntaxNode,
    Unary,
    spine,
)

Path: TypeAlias = tuple[str | int, ...]
Equality: TypeAlias = tuple[tuple[str, ...], object]


def _below(node: SyntaxNode) -> list[SyntaxNode]:
    """Return the nodes below a node, as the expression has them."""
    if isinstance(node, Unary):
        return [node.operand]
    if isinstance(node, Binary):
        first, chain = spine(node)
        return [first, *(one.right for one in chain)]
    if isinstance(node, Chain):
        return [node.node]
    if isinstance(node, Predicate):
        return [node.body]
    if isinstance(node, MemberAccess):
        return [node.node, node.key]
    if isinstance(node, Slice):
        return [node.node, *(one for one in (node.start, node.stop) if one is not None)]
    if isinstance(node, Call):
        callee = node.callee.node if isinstance(node.callee, MemberAccess) else node.callee
        return [callee, *node.arguments]
    if isinstance(node, Builtin):
        return node.arguments
    if isinstance(node, Conditional):
        return [node.condition, node.yes, node.no]
    if isinstance(node, (Statements, Array)):
        return node.nodes
    if isinstance(node, Mapping):
        return [one for pair in node.pairs for one in pair]
    return []


def _path(node: SyntaxNode, variables: dict[str, Path | None]) -> tuple[Path | None, list[SyntaxNode]]:
    """Return the path that a node reads, and the nodes of its dynamic keys.

    The path is None where the node reads none. It ends at the first key that is not known.
    """
    if isinstance(node, Chain):
        return _path(node.node, variables)
    if isinstance(node, Name):
        if node.name in variables:
            return variables[node.name], []
        return (() if node.name == "$env" else (node.name,)), []
    if not isinstance(node, MemberAccess):
        return None, [node]
    base, dynamic = _path(node.node, variables)
    key = node.key.value if isinstance(node.key, Literal) else None
    if not dynamic and base is not None and (type(key) is str or type(key) is int):
        return (*base, key), []
    return base, [*dynamic, node.key] if not isinstance(node.key, Literal) else dynamic or [node.key]


def paths(root: SyntaxNode) -> frozenset[Path]:
    """Return the paths that are read from the environment; `$env` is the empty one."""
    found: set[Path] = set()
    _walk(root, {}, found)
    return frozenset(found)


def _walk(node: SyntaxNode, variables: dict[str, Path | None], found: set[Path]) -> None:
    # A nested function that calls itself would be a circle, which the collector has to find.
    if isinstance(node, (Name, MemberAccess, Chain)):
        path, rest = _path(node, variables)
        if path is not None and not (isinstance(node, Name) and node.name in variables):
            found.add(path)
        for one in rest:
            if one is not node:
                _walk(one, variables, found)
        if rest != [node]:
            return
    if isinstance(node, Let):
        _walk(node.value, variables, found)
        path, rest = _path(node.value, variables)
        _walk(node.body, {**variables, node.name: path if not rest else None}, found)
        return
    for one in _below(node):
        _walk(one, variables, found)


def equalities(root: SyntaxNode) -> tuple[Equality, ...]:
    """Return `path == literal` that must hold for a result of true.

    `path in [literals]` gives a tuple of them: one must hold. Only what `&&` joins at the top
    counts.
    """
    if isinstance(root, Binary) and root.operator in ANDS:
        first, chain = spine(root)
        return tuple(one for node in (first, *(part.right for part in chain)) for one in equalities(node))
    if not isinstance(root, Binary) or root.operator not in ("==", "in"):
        return ()
    for one, other in ((root.left, root.right), (root.right, root.left)):
        path, rest = _path(one, {})
        if path is None or rest or not path or not all(isinstance(name, str) for name in path):
            continue
        names: Any = path
        if root.operator == "==" and isinstance(other, Literal):
            return ((names, other.value),)
        if root.operator == "in" and one is root.left and isinstance(other, Array) and other.nodes:
            values = [node.value for node in other.nodes if isinstance(node, Literal)]
            if len(values) == len(other.nodes) and "" not in values:  # which nil may be in, too
                return ((names, tuple(values)),)
    return ()
