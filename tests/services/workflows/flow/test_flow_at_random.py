"""Random flow control on a whole core, also restarted, goes as the model says."""

from __future__ import annotations

import copy
import os
import random
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.definition import FlowControl
from aether_trio.model.workflows.documents import compile_document
from aether_trio.model.workflows.happenings import SignalReceived
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.performer import dated_id
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.executions.advancing import Begin, Executions, StartDropped
from aether_trio.services.workflows.stored import definitions
from aether_trio.storage.base import Program
from tests.helpers.core import World
from tests.model.workflows.test_flow_chain import Tables
from tests.services.workflows.helpers import client
from tests.services.workflows.joins.test_joins_at_random import opened_in_turn

SEEDS = range(100 if os.environ.get("TESTS_FULL") == "1" else 5)
ACTS = 40


def random_flow(rng: random.Random) -> dict[str, Any]:
    """Return a flow; its times are no whole seconds, so that no act is at one of them."""

    def stage(**fields: Any) -> dict[str, Any]:
        key = rng.choice((None, "trigger.k", "trigger.j"))
        return fields if key is None else {**fields, "key": key}

    def some(most: int) -> str:
        return f"{rng.randrange(1, most)}s{rng.choice((131, 257, 373))}ms"

    found: dict[str, Any] = {
        "idempotency": {"key": "trigger.n", "period": some(30)},
        "rate": stage(limit=rng.randrange(2, 6), period=some(20)),
        rng.choice(("debounce", "batch")): None,
        "concurrency": stage(limit=rng.randrange(1, 4), on_limit=rng.choice(("queue", "skip", "replace"))),
        "throttle": stage(limit=rng.randrange(1, 4), period=some(10)),
    }
    if "debounce" in found:
        found["debounce"] = stage(period=some(5), max_wait="12s479ms")
    else:
        found["batch"] = stage(size=rng.randrange(1, 4), timeout=some(8))
    found = {name: value for name, value in found.items() if rng.random() < 0.5}
    return {**(found or {"concurrency": 1}), "priority": "trigger.p"}


class Foretold:
    """What becomes of starts, as the gates alone have it."""

    def __init__(self, flow: FlowControl) -> None:
        self.tables = Tables(flow)
        self.known: list[str] = []

    def start(self, now_ms: int, run: str, given: dict[str, Any]) -> bool:
        """Let a start arrive; return whether it is taken."""
        self.until(now_ms)
        before = copy.deepcopy(self.tables)
        keys = [given[gate.key_source[-1]] if gate.key_source else "" for gate in self.tables.flow.gates]
        self.tables.arrive(run, *map(str, keys), priority=float(given["p"]))
        if set(self.tables.dropped) - set(before.dropped) == {run}:
            self.tables = before  # it changes nothing
            return False
        self.known.append(run)
        self._settle()
        return True

    def finish(self, now_ms: int, run: str) -> None:
        self.until(now_ms)
        self.tables.finish(run)
        self._settle()

    def until(self, now_ms: int) -> None:
        self.tables.until(now_ms)
        self._settle()

    def _settle(self) -> None:
        """End the runs that were replaced; a run begins with each of its items at once."""
        tables = self.tables
        while tables.cancelled:
            run = tables.cancelled.pop(0)
            if run in tables.keys:
                tables.finish(run)

    def statuses(self) -> dict[str, set[str]]:
        running = set(self.tables.running())
        waiting = {run for run, _ in self.tables.items.values()} | set(self.tables.runs)
        return {"running": running, "queued": waiting - running}


def start(
    executions: Executions, given: dict[str, Any], number: int, tx: Transaction
) -> Program[tuple[int, str, bool]]:
    now_ms = tx.context.now_ms
    stored = yield from definitions.newest("w", "flow")
    assert stored is not None
    run = dated_id(now_ms, f"start {number}")
    try:
        yield from executions.start(tx, stored, "w", Begin(given, "ag::w::boss::1"), task_id=run)
    except StartDropped:
        return now_ms, run, False
    return now_ms, run, True


def finish(executions: Executions, run: str, tx: Transaction) -> Program[int]:
    now_ms = tx.context.now_ms
    yield from executions.happen(tx, run, SignalReceived(at_ms=now_ms, name="go", data=None))
    return now_ms


def statuses(world: World) -> dict[str, set[str]]:
    rows = world.databases["tasks"].query("SELECT execution_id, status FROM workflow_executions")
    return {word: {run for run, status in rows if status == word} for word in ("running", "queued")}


def executions_of(core: Core) -> Executions:
    found: Executions = core.tasks.engine._workflows._executions  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("seed", SEEDS)
async def test_rows_and_timers_do_as_the_gates(world: World, seed: int) -> None:
    rng = random.Random(seed)
    flow = random_flow(rng)
    document = {"name": "flow", "flow": flow, "steps": [{"id": "go", "wait": {"signal": "go"}}]}
    graph, _ = compile_document("workflow", document, TOOLS)
    foretold = Foretold(graph.flow)  # type: ignore[union-attr]
    async with opened_in_turn(world) as begin:
        core = await begin()
        async with client(core) as boss:
            await boss.create(document)
        for number in range(ACTS):
            engine, running = core.tasks.engine, sorted(statuses(world)["running"])
            if running and rng.random() < 0.4:
                run = rng.choice(running)
                foretold.finish(await engine.result(partial(finish, executions_of(core), run)), run)
            else:
                given = {"k": rng.choice("ab"), "j": rng.choice("xy"), "n": rng.randrange(20), "p": rng.randrange(3)}
                done = await engine.result(partial(start, executions_of(core), given, number))
                assert foretold.start(done[0], done[1], given) == done[2], (number, flow, given)
            assert statuses(world) == foretold.statuses(), (number, flow)
            if rng.random() < 0.1:
                core = await begin()
            await trio.sleep(rng.choice((1, 1, 2, 5)))  # windows end at different moments
            foretold.until(core.tasks.engine.clock.now_ms())
            assert statuses(world) == foretold.statuses(), (number, flow)
        while any((left := statuses(world)).values()):
            for run in sorted(left["running"])[:1]:
                await core.tasks.engine.result(partial(finish, executions_of(core), run))
            await trio.sleep(40)
        await trio.sleep(100)
        query = world.databases["tasks"].query
        for table in ("workflow_flow_gates", "workflow_flow_runs", "workflow_flow_items"):
            assert not query(f"SELECT * FROM {table}"), table
        assert not query("SELECT * FROM workflow_timers WHERE kind = 'flow'")
