"""Builds documents of graphs in Python, as files of YAML have them.

    report = WorkflowGraph("report", inputs={"topic": "string"})
    search = report.step("search", action={"agent": "searcher", "tool_name": "search"})
    report.step("write", action={"agent": "writer", "arguments": {"hits": search.result.hits}})
    await client.workflow.apply([report.document()])

A step depends on those whose results it reads. All keys are those of docs/workflows.md; the gateway
checks the document when it is applied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

EXPRESSION_KEYS: Final = frozenset({"when", "condition", "key", "equals", "priority"})
"""Keys whose value is the text of an expression; elsewhere one is `{$expr: …}`."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_READ: Final = re.compile(r"""\bsteps(?:\?)?(?:\.([A-Za-z_][A-Za-z0-9_]*)|\[\s*("(?:[^"\\]|\\.)*"|'[^'\\]*')\s*\])""")


class GraphExpression:
    """An expression of expr 1.17; its attributes and items are those of its value.

    `str()` gives its text, so larger ones are written with f-strings and `expr`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __getattr__(self, name: str) -> GraphExpression:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: str | int) -> GraphExpression:
        if isinstance(key, str) and _NAME.match(key):
            return GraphExpression(f"{self._text}.{key}")
        return GraphExpression(f"{self._text}[{json.dumps(key)}]")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"expr({self._text!r})"

    def __iter__(self) -> Iterator[GraphExpression]:
        raise TypeError(f"{self!r} has a value in an execution only: let a step with for_each go over it")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has a value in an execution only: give it as `when`")


def expr(text: str) -> GraphExpression:
    """Make an expression of its text: `expr(f"len({search.result.hits}) > 3")`."""
    return GraphExpression(text)


class GraphStep:
    """A step of a graph; `result` is what others read of it."""

    __slots__ = ("document", "id", "result")

    def __init__(self, id: str, document: dict[str, Any]) -> None:  # noqa: A002
        self.id = id
        self.document = document
        self.result = GraphExpression("steps")[id]["result"]

    def __repr__(self) -> str:
        return f"<step {self.id!r}>"


class WorkflowGraph:
    """A workflow that is built step by step; `fields` are the document's other keys.

    `inputs` gives access to its input: `graph.inputs.topic`, in a step's data.
    """

    def __init__(self, id: str, *, inputs: Mapping[str, Any] | None = None, **fields: Any) -> None:  # noqa: A002
        self.id = id
        self.inputs = GraphExpression("inputs")
        self._fields = dict(fields)
        if inputs is not None:
            self._fields["inputs"] = dict(inputs)
        self._steps: dict[str, GraphStep] = {}

    def step(self, id: str, *, after: Iterable[GraphStep | str] = (), **fields: Any) -> GraphStep:  # noqa: A002
        """Add a step; `fields` are its keys (`while_` for `while`).

        It depends on the steps of `after`, and on those whose results its fields read. Raises
        ValueError for an id that is there already, and a step of another graph.
        """
        if id in self._steps:
            raise ValueError(f"step {id!r} is there already")
        document: dict[str, Any] = {"id": id}
        named = [self._id_of(one) for one in after]
        values = {name.rstrip("_"): self._written(name.rstrip("_"), value) for name, value in fields.items()}
        named += [*values.pop("depends_on", ()), *(one for one in _steps_read(values) if one in self._steps)]
        if named:
            document["depends_on"] = list(dict.fromkeys(named))
        made = self._steps[id] = GraphStep(id, document | values)
        return made

    def outputs(self, value: Any) -> None:
        """Say what the result of an execution is; else it has the results of all steps."""
        self._fields["outputs"] = self._written("outputs", value)

    def document(self) -> dict[str, Any]:
        """Return the document, for `workflow.apply` or a file of JSON."""
        fields = {name: self._written(name, value) for name, value in self._fields.items()}
        return {"id": self.id, **fields, "steps": [dict(one.document) for one in self._steps.values()]}

    def _id_of(self, step: GraphStep | str) -> str:
        if isinstance(step, str):
            return step
        if self._steps.get(step.id) is not step:
            raise ValueError(f"{step!r} is not a step of workflow {self.id!r}")
        return step.id

    def _written(self, key: str, value: Any) -> Any:
        """Return a value as JSON has it: with expressions and steps as texts."""
        if isinstance(value, GraphExpression):
            return str(value) if key in EXPRESSION_KEYS else {"$expr": str(value)}
        if isinstance(value, GraphStep):
            return self._id_of(value)
        if isinstance(value, Mapping):
            return {str(name): self._written(str(name), one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._written(key, one) for one in value]
        return value


def _steps_read(value: Any, key: str = "") -> Iterator[str]:
    """Yield the ids of the steps that the expressions of a value read."""
    if isinstance(value, str):
        if key in EXPRESSION_KEYS or key == "$expr" or "{{" in value:
            for name, quoted in _READ.findall(value):
                yield name or json.loads(f'"{quoted[1:-1]}"')
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _steps_read(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from _steps_read(one, key)
