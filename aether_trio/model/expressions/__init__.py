"""The expression language expr-lang 1.17 (the Go package `expr`), in pure Python.

An expression is compiled once to closures and evaluated with an environment: JSON values whose
numbers are floats, datetimes and durations. Pure: the clock and the regular expressions are handed
in, and time zones come from `zoneinfo`. A variable that the environment lacks is nil.

It is held to the rows that the Go package v1.17.7 answered (tests/model/expressions). What differs
on purpose:

- Work and data are bounded by a `Budget`, and nesting by 60, not by a million elements.
- A call of a function that does not exist fails when compiled, not when it runs.
- keys(), values() and toPairs() are ordered by key, where Go's order is random.
- A sort keeps the order of equal elements.
- Moments have microseconds and the years 1 to 9999; the system's zone is UTC.
- A byte of a string is an int, where Go has uint8; a slice of a string that cuts a character has
  U+FFFD there.
- A map that reaches the caller has one of the keys 1, 1.0 and true of groupBy() or fromPairs().
- findLast() and findLastIndex() are right as the right operand of an operator, where expr takes
  the left operand from a stray value on its stack.
- A power whose exponent has a fraction may differ in the last digits, as it does between machines.
- The bounds of a slice are checked when compiled, also where what is sliced is unknown.
- A time zone prints its name. A predicate over a map finds no elements: filter() and find() fail.
- The methods of moments and durations are those in methods.py.
"""

from __future__ import annotations

from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.compiler import RegexCompiler
from aether_trio.model.expressions.errors import ExpressionError
from aether_trio.model.expressions.expression import Expression, compile_expression
from aether_trio.model.expressions.mismatches import Typed
from aether_trio.model.expressions.values import Duration

Budget = EvaluationBudget

__all__ = ["Budget", "Duration", "Expression", "ExpressionError", "RegexCompiler", "Typed", "compile_expression"]
