"""`@workflow`: makes a durable function of an async one, and runs it."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, overload

from aether_trio.client.workflows.errors import Cancelled
from aether_trio.client.workflows.flow import Flow, NextRun, _text_of, entered, result_problem
from aether_trio.client.workflows.run import Command, Run

Body = Callable[..., Awaitable[Any]]

_TYPES: Final = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip


class Function:
    """A durable function: its name, code, and the JSON Schema of its input.

    `grace_s`: how long its worker may be away before another one goes on. `cleanup_s`: the time
    that it has for undoing when its execution is cancelled. `events`: the keys of the events for
    which it waits. `terms`: its flow, max_executions and budget, as documents have them.
    """

    def __init__(
        self,
        body: Body,
        name: str,
        grace_s: float,
        cleanup_s: float,
        events: Mapping[str, str] | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> None:
        self.body = body
        self.name = name
        self.grace_s = grace_s
        self.cleanup_s = cleanup_s
        self.events = _events(events or {})
        self.terms = dict(terms or {})
        self.schema = _schema(body)
        self.__doc__ = body.__doc__
        self.__name__ = getattr(body, "__name__", name)

    def __call__(self, flow: Flow, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call the function within another one: its steps are steps of that one."""
        return self.body(flow, *args, **kwargs)

    async def perform(self, run: Run) -> Command:
        """Run it with the input of a run; return the command that ends the run."""
        given = run.records.input
        try:
            with entered(run, self.events) as flow:
                result = await self.body(flow, **(given if isinstance(given, Mapping) else {}))
        except Cancelled:
            run.check_end(run.root)
            return {"do": "end", "outcome": "cancelled"}
        except Exception as error:
            run.check_end(run.root)
            text = f"{type(error).__name__}: {_said(error)}"
            return {"do": "end", "outcome": "failed", "error": text, "error_type": type(error).__name__}
        run.check_end(run.root)
        if isinstance(result, NextRun):
            return {"do": "end", "outcome": "continued", "input": result.input}
        problem, error_type = result_problem(result)
        if problem:
            text = f"the result of function {self.name} {problem}"
            return {"do": "end", "outcome": "failed", "error": text, "error_type": error_type}
        return {"do": "end", "outcome": "completed", "result": result}


@overload
def workflow(body: Body) -> Function: ...
@overload
def workflow(
    *,
    name: str = "",
    grace_s: float = 10.0,
    cleanup_s: float = 60.0,
    events: Mapping[str, str] | None = None,
    flow: Mapping[str, Any] | None = None,
    max_executions: int = 0,
    budget: Mapping[str, Any] | None = None,
) -> Callable[[Body], Function]: ...
def workflow(
    body: Body | None = None,
    *,
    name: str = "",
    grace_s: float = 10.0,
    cleanup_s: float = 60.0,
    events: Mapping[str, str] | None = None,
    flow: Mapping[str, Any] | None = None,
    max_executions: int = 0,
    budget: Mapping[str, Any] | None = None,
) -> Function | Callable[[Body], Function]:
    """Make a durable function of an async function whose first argument is its `Flow`.

    Its other arguments are the fields of the input; their types and defaults are its JSON Schema.
    `events` has the events for which it may wait, and of each the expression that is its key, such
    as {"order.paid": "input.order"}; "" for any event of that name. `flow`, `max_executions` and
    `budget` are those of a workflow's document, such as `flow={"concurrency": 1, "key":
    "inputs.order"}` and `budget={"steps": 100}`; debounce and batch are refused.
    """
    terms = {
        key: value for key, value in (("flow", flow), ("max_executions", max_executions), ("budget", budget)) if value
    }

    def decorate(body: Body) -> Function:
        if not inspect.iscoroutinefunction(body):
            raise TypeError(f"{body!r} is no async function: a workflow is `async def f(flow, …)`")
        return Function(body, name or body.__name__, grace_s, cleanup_s, events, terms)

    return decorate if body is None else decorate(body)


def _events(events: Mapping[str, str]) -> dict[str, str]:
    for name, key in events.items():
        if not isinstance(key, str):
            raise TypeError(f"the key of event {name!r} is an expression such as 'input.id', not {key!r}")
    return dict(events)


def _said(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return "; ".join(f"{type(one).__name__}: {_said(one)}" for one in error.exceptions)
    return _text_of(error)


def _schema(body: Body) -> dict[str, Any]:
    """Return the JSON Schema of a function's input. Raises TypeError."""
    found = list(inspect.signature(body).parameters.values())
    if not found or found[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{body!r} has no first argument for its flow")
    try:
        hints = typing.get_type_hints(body)
    except Exception:  # names that are known to type checkers only
        hints = {}
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    for one in found[1:]:
        if one.kind is inspect.Parameter.VAR_KEYWORD:
            schema["additionalProperties"] = True
            continue
        if one.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise TypeError(f"argument {one.name} of {body!r} cannot be given by its name, as a field of the input")
        schema["properties"][one.name] = _of_type(hints.get(one.name, Any))
        if one.default is inspect.Parameter.empty:
            schema["required"].append(one.name)
    return schema


def _of_type(hint: Any) -> dict[str, Any]:
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [_of_type(one) for one in parts]
        return {"anyOf": inner} if all(inner) else {}
    if origin is list and parts:
        return {"type": "array", "items": _of_type(parts[0])}
    if origin in _TYPES:
        return {"type": _TYPES[origin]}
    return {}
