"""The `flow:` of rules and workflows becomes gates, or gives all its errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aether_trio.model.workflows.definition import (
    NO_FLOW_CONTROL,
    Batch,
    Concurrency,
    Debounce,
    FlowControl,
    FlowGate,
    Graph,
    OnLimit,
    Pace,
    RuleDefinition,
)
from aether_trio.model.workflows.documents import compile_document
from aether_trio.model.workflows.reading import pointer
from aether_trio.services.workflows.documents.tools import TOOLS

RULE = {"rule_name": "r", "source_event": "e", "destination_template": {"agent": "a"}}
WORKFLOW = {"id": "w", "steps": [{"id": "s", "action": {"agent": "a"}}]}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def rule(flow: Any) -> tuple[FlowControl, list[str]]:
    found, findings = compile_document("rule", {**RULE, "flow": flow}, TOOLS)
    assert isinstance(found, RuleDefinition) or findings.errors
    errors = [f"{pointer(one.path)}: {one.text()}" for one in findings.errors]
    return found.flow if isinstance(found, RuleDefinition) else NO_FLOW_CONTROL, errors


def gates(flow: Any) -> tuple[FlowGate, ...]:
    found, errors = rule(flow)
    assert errors == []
    return found.gates


def stages(gate: FlowGate) -> dict[str, Any]:
    return {
        name: value
        for name in ("key_source", "idempotency_ms", "rate", "debounce", "batch", "concurrency", "throttle")
        if (value := getattr(gate, name))
    }


def test_stages_without_keys_are_one_gate() -> None:
    (gate,) = gates(
        {
            "concurrency": {"limit": 3, "on_limit": "replace"},
            "throttle": {"limit": 10, "period": "1m"},
            "rate": {"limit": 100, "period": "1h"},
            "debounce": {"period": "5s", "max_wait": "1m30s"},
        }
    )
    assert gate == FlowGate(
        rate=Pace(limit=100, period_ms=3_600_000),
        debounce=Debounce(period_ms=5_000, max_wait_ms=90_000),
        concurrency=Concurrency(limit=3, on_limit=OnLimit.REPLACE),
        throttle=Pace(limit=10, period_ms=60_000),
    )


def test_stages_with_other_keys_are_gates_in_the_order_of_stages() -> None:
    found = gates(
        {
            "key": "input.customer",
            "throttle": {"limit": 1, "period": "1s", "key": "input.region"},
            "concurrency": {"limit": 1},
            "batch": {"size": 20, "timeout": "10s"},
            "idempotency": {"key": "input.id"},
        }
    )
    assert [stages(gate) for gate in found] == [
        {"key_source": "input.id", "idempotency_ms": 86_400_000},
        {
            "key_source": "input.customer",
            "batch": Batch(size=20, timeout_ms=10_000),
            "concurrency": Concurrency(limit=1),
        },
        {"key_source": "input.region", "throttle": Pace(limit=1, period_ms=1_000)},
    ]
    assert found[1].key is not None
    assert found[1].key.evaluate({"input": {"customer": "c-1"}}, now=lambda: NOW) == "c-1"


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ({"concurrency": 4}, Concurrency(limit=4)),
        ({"singleton": True}, Concurrency(limit=1, on_limit=OnLimit.SKIP)),
        ({"singleton": {"on_limit": "replace"}}, Concurrency(limit=1, on_limit=OnLimit.REPLACE)),
    ],
)
def test_short_forms(flow: Any, expected: Concurrency) -> None:
    (gate,) = gates(flow)
    assert gate.concurrency == expected


def test_a_singleton_that_is_false_is_none() -> None:
    assert gates({"singleton": False}) == ()


def test_a_priority_is_an_expression_or_a_number() -> None:
    for priority, expected in (("input.urgent ? 9 : 1", 9), (5, 5)):
        found, errors = rule({"concurrency": 1, "priority": priority})
        assert errors == []
        assert found.priority is not None
        assert found.priority.evaluate({"input": {"urgent": True}}, now=lambda: NOW) == expected


def test_a_workflow_reads_its_input() -> None:
    flow = {"concurrency": {"limit": 1, "key": "trigger.customer"}, "priority": "inputs.level"}
    graph, findings = compile_document("workflow", {**WORKFLOW, "flow": flow}, TOOLS)
    assert findings.errors == []
    assert isinstance(graph, Graph)
    assert graph.flow.gates[0].key_source == "trigger.customer"
    assert graph.source["flow"] == flow
    _, findings = compile_document("workflow", {**WORKFLOW, "flow": {"singleton": {"key": "input.a"}}}, TOOLS)
    assert [one.text() for one in findings.errors] == [
        (
            "the workflow, flow, singleton, key: 'input' is an event's data; the input of a workflow is 'trigger' or "
            "'inputs'"
        )
    ]


def test_without_flow_there_is_none() -> None:
    found, _ = compile_document("rule", RULE, TOOLS)
    assert isinstance(found, RuleDefinition)
    assert found.flow == NO_FLOW_CONTROL


@pytest.mark.parametrize(
    ("flow", "errors"),
    [
        ([], ["/flow: rule 'r', flow has to be a map with keys such as idempotency, and is a list"]),
        ({"concurency": 1}, ["/flow/concurency: rule 'r', flow has no key 'concurency': did you mean 'concurrency'?"]),
        ({"concurrency": {}}, ["/flow/concurrency: rule 'r', flow, concurrency has no limit: say how many"]),
        (
            {"concurrency": {"limit": 0}},
            [
                "/flow/concurrency/limit: rule 'r', flow, concurrency: limit is 0; it has to be at least 1 and at most 1000"
            ],
        ),
        (
            {"concurrency": {"limit": 1, "on_limit": "wait"}},
            [
                (
                    "/flow/concurrency/on_limit: rule 'r', flow, concurrency: on_limit is 'wait'; "
                    "it has to be one of queue, replace, skip"
                )
            ],
        ),
        (
            {"throttle": {"limit": 1}},
            ["/flow/throttle: rule 'r', flow, throttle has no period: say for how long, such as 10s"],
        ),
        (
            {"rate": {"limit": 1, "period": "0s"}},
            ["/flow/rate/period: rule 'r', flow, rate: period has to be longer than 0"],
        ),
        (
            {"rate": {"limit": 1, "period": "9000h"}},
            ["/flow/rate/period: rule 'r', flow, rate: period is longer than 366 days"],
        ),
        (
            {"debounce": {"period": "10s", "max_wait": "5s"}},
            [
                (
                    "/flow/debounce/max_wait: rule 'r', flow, debounce: max_wait is shorter than period, "
                    "so no period ever passes"
                )
            ],
        ),
        (
            {"idempotency": {"period": "1h"}},
            ["/flow/idempotency: rule 'r', flow, idempotency has no key: say what makes two items the same"],
        ),
        (
            {"batch": {"size": 1_001, "timeout": "1s"}, "debounce": {"period": "1s"}},
            [
                "/flow/batch: rule 'r', flow has debounce and batch; both gather items: take one of them",
                "/flow/batch/size: rule 'r', flow, batch: size is 1001; it has to be at least 1 and at most 1000",
            ],
        ),
        (
            {"singleton": True, "concurrency": 2},
            [
                (
                    "/flow/concurrency: rule 'r', flow has singleton and concurrency; "
                    "a singleton is concurrency with a limit of 1: take one of them"
                )
            ],
        ),
        (
            {"key": 7, "singleton": True},
            ["/flow/key: rule 'r', flow: key has to be an expression, such as input.customer"],
        ),
    ],
)
def test_says_what_is_wrong_and_where(flow: Any, errors: list[str]) -> None:
    assert rule(flow)[1] == errors
