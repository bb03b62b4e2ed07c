"""What the interpreter looks up in a graph, computed once for each graph."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from aether_trio.model.workflows.definition import Graph, Step, Value, WaitFor

_MAX_PLANS: Final = 256


class Reads(NamedTuple):
    """What a value reads: top-level names, steps, and the steps whose result is read."""

    everything: bool
    names: frozenset[str]
    steps: tuple[str, ...]
    results: frozenset[str]

    def read(self, name: str) -> bool:
        """Return whether it may read a top-level name."""
        return self.everything or name in self.names


class GraphPlan:
    """A graph with its reverse edges and other indexes.

    `dependents` are the numbers of the steps whose readiness changes when a step ends; `after` are
    the steps that have it in `depends_on`.
    """

    __slots__ = ("_reads", "after", "dependents", "graph", "number", "order", "signals", "steps")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps = graph.steps
        self.order: tuple[Step, ...] = tuple(graph.steps.values())
        self.number = {step.id: number for number, step in enumerate(self.order)}
        self.after: dict[str, list[str]] = {step.id: [] for step in self.order}
        self.signals: dict[str, list[Step]] = {}
        dependents: dict[str, set[int]] = {step.id: set() for step in self.order}
        for number, step in enumerate(self.order):
            for source in dict.fromkeys(step.depends_on):
                self.after[source].append(step.id)
            for source in (*step.depends_on, *step.targeted_by, *step.failure_target_of):
                dependents[source].add(number)
            if isinstance(step.work, WaitFor) and step.work.signal:
                self.signals.setdefault(step.work.signal, []).append(step)
        self.dependents = {source: tuple(sorted(numbers)) for source, numbers in dependents.items()}
        self._reads: dict[int, tuple[Value, Reads]] = {}

    def reads(self, value: Value) -> Reads:
        """Return what a value of the graph reads."""
        found = self._reads.get(id(value))
        if found is None:
            found = self._reads[id(value)] = value, self._analysed(value)
        return found[1]

    def _analysed(self, value: Value) -> Reads:
        everything = False
        names: set[str] = set()
        steps: set[str] = set()
        results: set[str] = set()
        for path in value.paths():
            if not path or not isinstance(path[0], str):
                everything = True
                continue
            names.add(path[0])
            if path[0] != "steps":
                continue
            if len(path) == 1 or not isinstance(path[1], str):
                steps.update(self.steps)
                results.update(self.steps)
            elif path[1] in self.steps:
                steps.add(path[1])
                if len(path) == 2 or path[2] == "result" or not isinstance(path[2], str):
                    results.add(path[1])
        if everything:
            steps.update(self.steps)
            results.update(self.steps)
        ordered = tuple(sorted(steps, key=self.number.__getitem__))
        return Reads(everything, frozenset(names), ordered, frozenset(results))


_plans: Final[OrderedDict[int, GraphPlan]] = OrderedDict()


def plan_of(graph: Graph) -> GraphPlan:
    """Return the plan of a graph, which is known by its identity."""
    plan = _plans.get(id(graph))
    if plan is None or plan.graph is not graph:
        plan = _plans[id(graph)] = GraphPlan(graph)
        while len(_plans) > _MAX_PLANS:
            _plans.popitem(last=False)
    return plan
