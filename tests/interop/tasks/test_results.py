"""The published SDK gives results in reports, asks, and is told what follows."""

from __future__ import annotations

import json

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import World, in_asyncio
from tests.interop.tasks import steps


@in_asyncio
async def test_the_last_report_of_a_worker_has_the_result(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    for text, result in (('{"sum": 3}', '{"sum": 3}'), ("three", '"three"')):
        task_id = await steps.running(creator, worker, world)
        await worker.client.report_progress(task_id, state="done", completion=1.0, metadata={"result": text})
        await steps.op(worker, "complete", task_id)
        shown = await steps.task(creator, task_id)
        assert (shown.status, shown.metadata["_result"]) == (pb.TASK_STATUS_COMPLETED, result)
        assert shown.metadata["_result_bytes"] == str(len(result))


@in_asyncio
async def test_a_task_asks_and_reads_the_answer(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world)
    form = json.dumps({"question": "Pay?", "choices": ["now", "later"]})
    await steps.op(worker, "pause", task_id, pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, input_match={"_form": form}))
    waiting = await steps.task(creator, task_id)
    assert waiting.wait_spec.input_match["_form"] == form
    assert waiting.metadata["_queued_because"] == "waits for the answer to: Pay?"
    given = {"decision": "approve", "choice": "now", "question_id": waiting.wait_spec.input_match["question_id"]}
    answer = json.dumps({"metadata": given}).encode()
    await creator.send(f"tk::{world.ws}::{task_id}::input", answer)
    going_on = await steps.reaches(worker, task_id, pb.TASK_STATUS_RUNNING)
    used = json.loads(going_on.metadata["_input"])
    assert (used["by"], used["metadata"]) == (creator.topic, given)


@in_asyncio
async def test_a_failure_says_what_follows(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=600_000)
    for fields, outcome in (({}, "no_policy"), ({"retry_policy": policy}, "retry")):
        task_id = await steps.running(creator, worker, world, **fields)
        failed = await steps.op(worker, "fail", task_id, "boom")
        assert failed.metadata["_outcome"] == outcome
        assert ("_next_attempt_ms" in failed.metadata) == (outcome == "retry")
