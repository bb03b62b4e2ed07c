"""Find the changes of a module that could be a mistake of its author, one each.

Left alone are annotations, docstrings and other texts, decorators, assertions, logging, `__all__`,
`__slots__` and what only a type checker reads: no test needs to fail for these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_CALLS: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_UNTOLD: Final = frozenset({"__all__", "__slots__"})
_LOGS: Final = frozenset({"logger", "log", "logging"})


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the bytes `start:end` of the source by `text`.

    `lines` are those whose tests can notice it; none means all tests.
    """

    start: int
    end: int
    text: str
    line: int
    was: str
    lines: tuple[int, ...]

    def applied(self, source: str) -> str:
        """The source with it."""
        encoded = source.encode()
        return (encoded[: self.start] + self.text.encode() + encoded[self.end :]).decode()


def changes(source: str) -> list[Change]:
    """All changes of a module, in the order of its statements.

    Each compiles, and means something else.
    """
    found = _Finder(source)
    found.body(ast.parse(source).body, None)
    return found.found


class _Finder:
    """Goes through the statements.

    Each knows its lines, and whether they run when the module is imported.
    """

    def __init__(self, source: str) -> None:
        self.found: list[Change] = []
        self._source = source.encode()
        self._starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines: tuple[int, ...] = ()

    def body(self, statements: list[ast.stmt], function: ast.AST | None) -> None:
        for statement in statements:
            self._statement(statement, function)

    def _statement(self, node: ast.stmt, function: ast.AST | None) -> None:
        if _is_left_alone(node):
            return
        blocks = _blocks(node)
        first = min((block[0].lineno for block in blocks), default=(node.end_lineno or node.lineno) + 1)
        self._lines = tuple(range(node.lineno, max(first, node.lineno + 1))) if function is not None else ()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *node.args.kw_defaults):
                if default is not None:
                    self._expression(default)
            self.body(node.body, node)
            return
        if isinstance(node, ast.ClassDef):
            self.body(node.body, function)
            return
        self._whole(node)
        for expression in _expressions(node):
            self._expression(expression)
        for block in blocks:
            self.body(block, function)

    def _whole(self, node: ast.stmt) -> None:
        """Changes of a statement as such."""
        match node:
            case ast.Expr() | ast.Raise() | ast.Delete() | ast.AugAssign():
                self._add(node, "pass")
            case ast.Assign() if not all(isinstance(target, ast.Name) for target in node.targets):
                self._add(node, "pass")
            case ast.Break():
                self._add(node, "continue")
            case ast.Continue():
                self._add(node, "break")
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                self._add(node, "return None")
            case ast.If(test=test) | ast.While(test=test) if not _is_constant(test):
                self._add(test, f"not ({ast.unparse(test)})")
        if isinstance(node, ast.AugAssign) and (other := _OPERATORS.get(type(node.op))) is not None:
            self._add(node, ast.unparse(ast.AugAssign(node.target, other(), node.value)))

    def _expression(self, node: ast.AST) -> None:
        match node:
            case ast.JoinedStr() | ast.Lambda(body=ast.Constant(value=str())):
                return
            case ast.Compare():
                for index, operator in enumerate(node.ops):
                    other = [*node.ops]
                    other[index] = _COMPARISONS[type(operator)]()
                    self._add(node, f"({ast.unparse(ast.Compare(node.left, other, node.comparators))})")
            case ast.BoolOp():
                swapped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
                self._add(node, f"({ast.unparse(ast.BoolOp(swapped, node.values))})")
            case ast.UnaryOp(op=ast.Not()):
                self._add(node, f"({ast.unparse(node.operand)})")
            case ast.BinOp() if (instead := _OPERATORS.get(type(node.op))) is not None:
                self._add(node, f"({ast.unparse(ast.BinOp(node.left, instead(), node.right))})")
            case ast.IfExp():
                negated = ast.UnaryOp(ast.Not(), node.test)
                self._add(node, f"({ast.unparse(ast.IfExp(negated, node.body, node.orelse))})")
            case ast.Constant(value=bool() as value):
                self._add(node, repr(not value))
            case ast.Constant(value=int() | float() as number) if number + 1 != number:
                self._add(node, repr(number + 1))
            case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
                self._add(node.func, _CALLS[name])
        for child in ast.iter_child_nodes(node):
            self._expression(child)

    def _add(self, node: ast.stmt | ast.expr, text: str) -> None:
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        was = self._source[start:end].decode()
        self.found.append(Change(start, end, text, node.lineno, was, self._lines))


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks of statements below this one."""
    blocks = [getattr(node, name) for name in ("body", "orelse", "finalbody") if getattr(node, name, None)]
    blocks += [handler.body for handler in getattr(node, "handlers", ())]
    blocks += [case.body for case in getattr(node, "cases", ())]
    return blocks


def _expressions(node: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of this statement itself."""
    for name, value in ast.iter_fields(node):
        if name in {"body", "orelse", "finalbody", "handlers", "annotation"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.match_case):
                if child.guard is not None:
                    yield child.guard
            elif isinstance(child, ast.AST):
                yield child


def _is_left_alone(node: ast.stmt) -> bool:
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in _UNTOLD
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in _LOGS
    return False


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)
