"""Random executions on a whole core go as the interpreter alone foretells."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.definition import Graph
from aether_trio.model.workflows.happenings import NO_ITEM, DoAction, StartExecution
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.operations.past_operations import FORK, REPLAY
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.model.workflows.driver import Execution
from tests.services.workflows.helpers import Client, TaskOp, client
from tests.services.workflows.random_documents import BELOW, DocumentMaker, destiny, destiny_below

SEEDS = range(200 if os.environ.get("TESTS_FULL") == "1" else 12)


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def foretold(document: dict[str, Any], seed: int) -> Execution:
    """Let the interpreter alone run a document, in some order."""
    graph, _ = read_json("workflow", document)
    assert isinstance(graph, Graph)
    run = Execution(graph, trigger={})
    run.start()
    rng = random.Random(seed)
    while run.end is None:
        run.signal("go")
        if run.end is None and run.due_ms:
            run.pass_time()
        if run.undoing:
            place = min(run.undoing)
            run.undone(place.step, place.item)
        elif run.open or run.cancelling:
            place = rng.choice(sorted({**run.open, **run.cancelling}))
            command = run.open.get(place) or run.cancelling[place]
            if isinstance(command, StartExecution):
                result, error = destiny_below(command.input)
                kind = "FIVE"
            else:
                assert isinstance(command, DoAction)
                item = "" if place.item == NO_ITEM else str(place.item)
                result, error = destiny(seed, place.step, item, command.attempt)
                kind = ""
            ended = run.ended(place.step, place.item, result=result, error=error, error_type=kind if error else "")
            run.tell(ended)
    return run


async def work(core: Core, seed: int, seen: list[pb.TaskAssignment]) -> None:
    """Do the tasks of the agent "hand" for ever, each after a random time."""
    rng = random.Random(seed)
    async with connect(core, agent("w", "hand", "1")) as link, trio.open_nursery() as nursery:

        async def do(task: pb.TaskAssignment, delay: float) -> None:
            claim = TaskOp(op=TaskOp.CLAIM, task_id=task.task_id, request_id=f"c-{task.task_id}")
            link.send(pb.UpstreamMessage(task_op=claim))
            await trio.sleep(delay)
            request = TaskOp(op=TaskOp.COMPLETE, task_id=task.task_id, request_id=f"e-{task.task_id}")
            meta = task.metadata
            if "compensates" not in meta:
                item = meta.get("item", "") or meta.get("round", "")
                result, error = destiny(seed, meta["step_id"], item, int(meta.get("attempt", "1")))
                request.wait_spec.input_match["result"] = json.dumps(result)
                if error:
                    request = TaskOp(op=TaskOp.FAIL, task_id=task.task_id, request_id=f"f-{task.task_id}", reason=error)
            link.send(pb.UpstreamMessage(task_op=request))

        while True:
            task = (await link.next("task_assignment")).task_assignment
            seen.append(task)
            nursery.start_soon(do, task, rng.choice((0, 0.01, 0.5, 2)))


async def signalled_to_its_end(boss: Client, execution_id: str) -> dict[str, Any]:
    """Give an execution the signals for which it waits until it has ended."""
    while True:
        found = await boss.execution(execution_id)
        if found["execution"]["Status"] in ("completed", "failed", "cancelled"):
            return found
        if any(one["Status"] == "waiting" for one in found["steps"]):
            await boss.ask(101, execution_id, "go")
        await trio.sleep(0.7)


async def test_random_executions_end_as_foretold(core: Core) -> None:
    ends = set()
    async with client(core) as boss:
        await boss.create(BELOW, "below")
        for seed in SEEDS:
            document = DocumentMaker(seed).document()
            expected = foretold(document, seed)
            assert expected.end is not None
            ends.add(expected.end.status)
            await boss.create(document, f"flow{seed}")
            seen: list[pb.TaskAssignment] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, core, seed, seen)
                execution_id = await boss.run(name=f"flow{seed}")
                found = await signalled_to_its_end(boss, execution_id)
                begun = len(seen)
                step = random.Random(seed).choice(document["steps"])["id"]
                fork = (await boss.do(FORK, execution_id, data={"from": step}))["execution_id"]
                forked = await signalled_to_its_end(boss, fork)
                nursery.cancel_scope.cancel()
            del seen[begun:]
            assert found["execution"]["Status"] == expected.end.status, (seed, found["execution"]["ErrorMessage"])
            steps = {one["StepID"]: one["Status"] for one in found["steps"] if "Item" not in one}
            if expected.end.status == "completed":
                task = await boss.task(execution_id)
                assert json.loads(task.metadata["_result"]) == expected.end.result, seed
                statuses = {name: word for name, word in expected.statuses().items() if word != "pending"}
                assert {name: steps.get(name, "pending") for name in statuses} == statuses, seed
            undone = [task.metadata["step_id"] for task in seen if "compensates" in task.metadata]
            assert bool(undone) <= (expected.end.status == "failed")
            places = [(one.metadata["step_id"], one.metadata.get("item", ""), one.metadata.get("round", ""),
                       "compensates" in one.metadata) for one in seen]  # fmt: skip
            assert len(places) == len(set(places)), "a place was begun twice"
            for one in (found["execution"], forked["execution"]):
                replayed = await boss.do(REPLAY, one["ExecutionID"], data={"dry_run": True})
                assert replayed["divergence"] is None, (seed, replayed)
                assert replayed["entries"] == one["Metadata"]["entries"]
            if expected.end.status == "completed":
                assert forked["execution"]["Result"] == found["execution"]["Result"], (seed, step)
    assert ends == {"completed", "failed"}
