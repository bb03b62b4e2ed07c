"""Ends of steps that share their round trips with others' on PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from aether_trio.services.tasks.handlers import operate
from aether_trio.storage.base import Alone
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.workflows.helpers import asked, client, worker

RUNS = 6


def step(name: str, given: str, after: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    action = {"agent": "hand", "tool_name": "double", "arguments": {"n": {"$expr": given}}}
    return {"id": name, "action": action, "depends_on": list(after), **more}


CHAIN = [
    step("one", "trigger.n"),
    step("two", "steps.one.result.n", ("one",)),
    step("three", "steps.two.result.n", ("two",)),
]
PARALLEL = [
    step("one", "trigger.n"),
    step("two", "trigger.n"),
    step("sum", "steps.one.result.n + steps.two.result.n", ("one", "two")),
]
ITEMS = [step("each", "item", for_each={"items": {"$expr": "1..5"}})]
WRONG = [step("one", "trigger.n"), step("two", "steps.one.result.none.n", ("one",))]


async def test_ends_of_steps_are_as_if_one_ran_after_the_other(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[object] = []

    class CountedAlone(Alone):
        def __init__(self) -> None:
            alone.append(self)

    monkeypatch.setattr(operate, "Alone", CountedAlone)
    documents = {"chain": CHAIN, "parallel": PARALLEL, "items": ITEMS, "wrong": WRONG}
    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as (one, two),
        client(one) as boss,
        worker(one, "hand", lambda task: {"n": asked(task)["n"] * 2}),
        worker(two, "hand", lambda task: {"n": asked(task)["n"] * 2}, "2"),
    ):
        for name, steps in documents.items():
            outputs = {"n": {"$expr": f"steps.{steps[-1]['id']}.result"}}
            await boss.create({"name": name, "steps": steps, "outputs": outputs}, name)
            for _ in range(2):  # each of the two workers has each graph compiled on its node
                await boss.ended(await boss.run({"n": 1}, name))
        for other in (None, "parallel", "items", "wrong"):
            alone.clear()
            ids = [
                (number, name, await boss.run({"n": number}, name))
                for number in range(RUNS)
                for name in ("chain", other)
                if name
            ]
            for number, name, execution_id in ids:
                with trio.fail_after(60):
                    found = (await boss.ended(execution_id))["execution"]
                if name == "wrong":
                    assert (found["Status"], "two" in found["ErrorMessage"]) == ("failed", True)
                    continue
                assert found["Status"] == "completed", found
                result = json.loads((await boss.task(execution_id)).metadata["_result"])["n"]
                expected: Any = {"n": number * 8}
                if name == "items":
                    expected = [{"n": item * 2} for item in range(1, 6)]
                assert result == expected
            # While two branches are open they end alone: one that fails cancels the other.
            assert bool(alone) == (other == "parallel")
