"""Operations of evaluations that belong together are counted, and bounded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aether_trio.model.evaluation_meter import TooManyOperations, check_meter, metered, note_operations
from aether_trio.model.workflows.definition import EvaluationError, Graph
from aether_trio.services.workflows.documents.reader import read_json

MANY = "len(filter(1..1500, {# > 0}))"


def value(output: Any) -> Any:
    graph, _ = read_json("workflow", {"id": "f", "steps": [{"id": "a", "output": output}]})
    assert isinstance(graph, Graph)
    return graph.steps["a"].output


def computed(of: Any, **options: int) -> tuple[Any, int]:
    with metered(**options) as meter:
        found = of.evaluate({"trigger": {"l": [1] * 1000}}, now=lambda: datetime.now(UTC))
    return found, meter.operations


def test_expressions_and_templates_are_counted() -> None:
    _, one = computed(value({"$expr": MANY}))
    assert 1_500 < one < 10_000
    found, three = computed(value([{"$expr": MANY}] * 3))
    assert found == [1500] * 3
    assert three == 3 * one
    _, template = computed(value("{{range .trigger.l}}{{.}}{{end}}"))
    assert 1_000 < template <= 10_000
    assert computed(value("plain"))[1] == 0


def test_many_expressions_of_one_value_have_a_bound() -> None:
    with pytest.raises(EvaluationError, match=r"output\.k\d+: the expressions and templates take more than 100,000"):
        computed(value({f"k{number}": {"$expr": MANY} for number in range(100)}))
    with pytest.raises(EvaluationError, match="take more than 100,000 operations together"):
        computed(value([{"$expr": MANY}] * 50 + ["{{.trigger.l}}"]))


def test_what_fails_counts_too() -> None:
    with metered() as meter, pytest.raises(EvaluationError, match="too many operations"):
        value({"$expr": "len(filter(1..9000, {# > 0}))"}).evaluate({}, now=lambda: datetime.now(UTC))
    assert meter.operations >= 10_000


def test_a_meter_is_that_of_its_block() -> None:
    note_operations(5)
    check_meter()
    with metered(10) as outer:
        note_operations(7)
        with metered(10) as inner:
            note_operations(11)
            with pytest.raises(TooManyOperations):
                check_meter()
        check_meter()
        note_operations(4)
        with pytest.raises(TooManyOperations):
            check_meter()
    check_meter()
    assert (outer.operations, inner.operations) == (11, 11)
