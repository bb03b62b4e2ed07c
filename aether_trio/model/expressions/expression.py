"""Compiles the source of an expression, and evaluates it with an environment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Final

from aether_trio.model.evaluation_meter import note_operations
from aether_trio.model.expressions import reading
from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.checker import BUILTINS, check
from aether_trio.model.expressions.compiler import ExpressionCompiler, RegexCompiler
from aether_trio.model.expressions.errors import ExpressionError, Fault
from aether_trio.model.expressions.folding import fold
from aether_trio.model.expressions.mismatches import Look, Mismatch, find_mismatches
from aether_trio.model.expressions.parser import parse
from aether_trio.model.expressions.values import plain

MAX_SOURCE: Final = 65_536
"""The bytes of UTF-8 that a source may have."""
_TOO_DEEP: Final = "the expression is nested too deep for what is left of the stack"


class Expression:
    """A compiled expression, without state: evaluations may run at any time."""

    __slots__ = ("_code", "_cost", "_equalities", "_paths", "_slots", "_special", "kind", "mismatches", "source")

    def __init__(
        self,
        source: str,
        compiler: ExpressionCompiler,
        code: Callable[[list[Any]], Any],
        reads: _Reads,
        found: _Found,
    ) -> None:
        self.source = source
        self._code = code
        self._cost = compiler.cost
        self._slots: list[object] = [None] * compiler.slots
        self._special = compiler.special
        self._paths, self._equalities = reads
        mismatches, self.kind = found
        self.mismatches = tuple(ExpressionError(one.message, source, one.offset) for one in mismatches)

    def evaluate(
        self, env: Mapping[str, object], *, now: Callable[[], datetime], budget: EvaluationBudget | None = None
    ) -> object:
        """Return the value of the expression; raise ExpressionError where it has none.

        `now` gives the moment for now(), with a zone. Without a budget it gets one of the usual
        size. The result may share lists and dicts with the environment, which is never changed.
        """
        if budget is None:
            budget = EvaluationBudget()
        before = budget.operations
        try:
            budget.operations -= self._cost
            if budget.operations < 0:
                budget.spend(0)
            value = self._code([env, budget, now, *self._slots])
            return plain(value) if self._special else value
        except Fault as fault:
            raise ExpressionError(fault.message, self.source, fault.offset) from None
        except RecursionError:
            raise ExpressionError(_TOO_DEEP, self.source, 0) from None
        except OverflowError:
            raise ExpressionError("a number of the environment has more than 64 bits", self.source, 0) from None
        finally:
            note_operations(before - budget.operations)

    def paths(self) -> frozenset[reading.Path]:
        """Return what is read from the environment: ("steps", "search", "topic").

        A key that is known only at run time ends a path. A variable of `let` stands for its path.
        """
        return self._paths

    def equalities(self) -> tuple[reading.Equality, ...]:
        """Return the `path == literal` that must hold for a result of true, for an index.

        `path in ["a", "b"]` gives the tuple of its literals, of which one must be equal.
        """
        return self._equalities

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"


_Found = tuple[list[Mismatch], str | None]
_Reads = tuple[frozenset[reading.Path], tuple[reading.Equality, ...]]


def compile_expression(
    source: str, *, regex: RegexCompiler, variables: Collection[str] = frozenset(), look: Look | None = None
) -> Expression:
    """Return a compiled expression; raise ExpressionError for what is wrong.

    A source has at most 64 KiB and 10,000 parts, nested at most 60 deep. `regex` makes the search
    for a pattern of `matches`; it raises ValueError for a bad one. `variables` are names that the
    environment is known to have: `last.id` reads one, though `last` is a builtin, too. With `look`,
    which says what is declared of them, `mismatches` has the operations that fail for their types,
    and `kind` is that of the value.
    """
    try:
        if len(source) > MAX_SOURCE or (not source.isascii() and len(source.encode("utf-8", "replace")) > MAX_SOURCE):
            raise Fault(f"the expression has more than {MAX_SOURCE} bytes", 0)
        root = parse(source, BUILTINS)
        check(root, regex, variables)
        reads = reading.paths(root), reading.equalities(root)
        compiler = ExpressionCompiler(regex)
        folded = fold(root)
        found: _Found = ([], None) if look is None else find_mismatches(folded, look)
        code = compiler.compile(folded)
    except Fault as fault:
        raise ExpressionError(fault.message, source, fault.offset) from None
    except RecursionError:
        raise ExpressionError(_TOO_DEEP, source, 0) from None
    return Expression(source, compiler, code, reads, found)
