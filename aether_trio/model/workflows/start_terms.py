"""Reads what bounds executions: `flow`, `max_executions` and `budget`.

Graphs have them in their documents, durable functions where they are registered.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.workflows.compiling import Compiler, ReadScope
from aether_trio.model.workflows.definition import NO_BUDGET, Budget, FunctionTerms, Json
from aether_trio.model.workflows.flow_control import gathers
from aether_trio.model.workflows.flow_documents import compile_flow
from aether_trio.model.workflows.reading import MAX_INTEGER, Fields, Findings, quoted
from aether_trio.model.workflows.shapes import ANY, Shape, shape_of

TERM_KEYS: Final[tuple[str, ...]] = ("flow", "max_executions", "budget")
_ELSEWHERE: Final = {
    "input": "'input' is an event's data; the input of a workflow is 'trigger' or 'inputs'",
    "source": "'source' is not there: the input of a workflow is 'trigger' or 'inputs'",
    "steps": "'steps' is not there: this is read before the execution begins",
    "execution": "'execution' is not there: this is read before it begins",
}


def start_scope(given: Shape) -> ReadScope:
    """Return what flow control reads, before there is an execution, of an input."""
    return ReadScope(names={"trigger": given, "inputs": given}, elsewhere=_ELSEWHERE)


def compile_budget(findings: Findings, fields: Fields) -> Budget:
    """Compile the `budget` of a document's fields."""
    if not fields.has("budget"):
        return NO_BUDGET
    inner = Fields(
        fields.get("budget"), fields.at("budget"), findings, ("steps", "usage", "runs_per_hour"), "the budget"
    )
    usage = {}
    for key, one, path in inner.mapping("usage", most=100):
        if isinstance(one, bool) or not isinstance(one, int | float) or one <= 0:
            findings.error(path, f"the budget of {quoted(key)} has to be a number above 0")
        else:
            usage[key] = float(one)
    return Budget(
        steps=inner.whole("steps", 0, most=MAX_INTEGER),
        usage=usage,
        runs_per_hour=inner.whole("runs_per_hour", 0, most=MAX_INTEGER),
    )


def compile_function_terms(compiler: Compiler, document: dict[str, Json], schema: Json) -> FunctionTerms:
    """Compile the terms of a function; `schema` is that of its input, or None."""
    fields = Fields(document, (), compiler.findings, TERM_KEYS, "the function")
    flow = compile_flow(compiler, fields, start_scope(ANY if schema is None else shape_of(schema)))
    if gathers(flow):
        fields.error("flow", "debounce and batch gather inputs, and a function takes one: gather them by a rule")
    return FunctionTerms(
        flow=flow,
        max_executions=fields.whole("max_executions", 0),
        budget=compile_budget(compiler.findings, fields),
    )
