"""Serves durable functions in a worker: registers them, and does their runs.

A run is a task of type `workflow_run` whose metadata has `function`. Its history is read, its
function runs up to where the history ends and from there on; what ends it is told by ADVANCE, not
by COMPLETE or FAIL. A worker that stops gives its runs to others at once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import anyio

from aether_trio.client.errors import AetherError, ConnectionLost, RequestTimeout, may_ask_again
from aether_trio.client.jobs.job import LOST, Job, JobEnd
from aether_trio.client.operations.workflow import Workflow, WorkflowAnswer
from aether_trio.client.workflows.definition import Function
from aether_trio.client.workflows.errors import AssignmentOver, CommandRefused
from aether_trio.client.workflows.records import Records, RunEntry
from aether_trio.client.workflows.run import Advance, Command, Run
from aether_trio.wire.pb import aether_pb2 as pb

logger = logging.getLogger("aether_trio.client")

REGISTER_FUNCTION: Final = cast("pb.WorkflowOperation.OpType.ValueType", 120)
ADVANCE_FUNCTION: Final = cast("pb.WorkflowOperation.OpType.ValueType", 121)

AWAY_S: Final = 0.5
UNKNOWN_S: Final = 5.0
"""The pause of a run whose function this worker does not have, before it is given to another."""
RELEASE_S: Final = 2.0
KNOWS_ALL: Final = 2**53 - 1
"""As the number of an entry: the worker asks for none that it does not know."""
_ENDS: Final = {"completed": JobEnd.COMPLETED, "failed": JobEnd.FAILED, "cancelled": JobEnd.CANCELLED}


class FunctionRequests(Workflow):
    """Asks the gateway for what workers do with durable functions (docs/wire.md)."""

    async def register(self, name: str, about: Mapping[str, Any], workspace: str) -> WorkflowAnswer:
        """Register a function of this worker's implementation."""
        return await self._do(REGISTER_FUNCTION, name, data=json.dumps(about).encode(), workspace=workspace)

    async def advance(self, execution_id: str, asked: Mapping[str, Any]) -> WorkflowAnswer:
        """Do commands of a run, and read what is new."""
        return await self._do(ADVANCE_FUNCTION, execution_id, data=json.dumps(asked).encode())


class GatewayLedger:
    """The history of a job's run, in the gateway."""

    def __init__(self, job: Job, workflow: FunctionRequests, check_client: Callable[[], None]) -> None:
        self._job = job
        self._workflow = workflow
        self._check_client = check_client

    async def advance(self, after: int, commands: Sequence[Command]) -> Advance:
        """Send commands until they are answered: what was done already is not done again."""
        asked = {"assignment": int(self._job.assignment.number or 0), "after": after, "do": list(commands)}
        answer: WorkflowAnswer | None = None
        while answer is None:
            try:
                answer = await self._workflow.advance(self._job.id, asked)
            except (ConnectionLost, RequestTimeout):
                self._check_client()
            except AetherError as error:
                self._check_client()
                if LOST in error.message or "is no run of a function" in error.message:
                    raise AssignmentOver(error.message) from None
                if not may_ask_again(error):
                    raise CommandRefused(error.message) from None
                await anyio.sleep(error.retry_after_s or AWAY_S)
        found = json.loads(answer.data)
        entries = [RunEntry(one["number"], one["at_ms"], one["entry"]) for one in found["entries"]]
        return Advance(entries, found["more"], found["status"])

    async def listen(self, news: Callable[[], None]) -> None:
        """Call `news` for what happens to the run, and when events may have been missed."""
        await self._job.listen(news)

    def now_ms(self) -> int:
        """Return the time in Unix ms."""
        return time.time_ns() // 1_000_000


async def register(
    workflow: FunctionRequests, functions: Sequence[Function], workspace: str, check_client: Callable[[], None]
) -> dict[str, Function]:
    """Register functions, also after cuts; return them by name.

    Raises AetherError for a refusal, ValueError, and why the client has ended.
    """
    table: dict[str, Function] = {}
    for one in functions:
        if not isinstance(one, Function):
            raise TypeError(f"{one!r} is no durable function: decorate it with @workflow")
        if one.name in table:
            raise ValueError(f"two functions are named {one.name!r}: give one another name, @workflow(name=…)")
        table[one.name] = one
    for one in table.values():
        about = {
            "input": one.schema,
            "grace_ms": max(round(one.grace_s * 1000), 1),
            "cleanup_ms": max(round(one.cleanup_s * 1000), 1),
            **({"events": one.events} if one.events else {}),
            **one.terms,
        }
        await _register(partial(workflow.register, one.name, about, workspace), check_client)
    return table


async def _register(ask: Callable[[], Awaitable[object]], check_client: Callable[[], None]) -> None:
    """Ask until it is answered: to register an equal function again changes nothing."""
    while True:
        try:
            await ask()
            return
        except AetherError as error:
            check_client()
            if not may_ask_again(error):
                raise
            await anyio.sleep(error.retry_after_s or AWAY_S)


async def serve_run(
    job: Job,
    functions: Mapping[str, Function],
    workflow: FunctionRequests,
    check_client: Callable[[], None],
    hibernate_after: float,
    is_full: Callable[[], bool],
) -> None:
    """Move on the run of a job, in its block."""
    ledger = GatewayLedger(job, workflow, check_client)
    async with job:
        try:
            status = await _serve(job, functions, ledger, hibernate_after, is_full)
        except AssignmentOver:
            status = "lost"
        except anyio.get_cancelled_exc_class():
            if job.end is None:
                with anyio.move_on_after(RELEASE_S, shield=True):
                    await _give_back(job, ledger)
            raise
        job.release(_ENDS.get(status, JobEnd.LOST if status == "lost" else JobEnd.HIBERNATED))


async def _serve(
    job: Job,
    functions: Mapping[str, Function],
    ledger: GatewayLedger,
    hibernate_after: float,
    is_full: Callable[[], bool],
) -> str:
    records = Records()
    more = True
    while more:
        answer = await ledger.advance(records.number, [])
        if answer.status != "running":
            return answer.status
        for one in answer.entries:
            records.add(one)
        more = answer.more
    function = functions.get(records.workflow)
    if function is None:
        logger.warning("run %s is of function %r, which this worker does not have", job.id, records.workflow)
        answer = await ledger.advance(records.number, [{"do": "suspend", "for_ms": round(UNKNOWN_S * 1000)}])
        return answer.status
    run = Run(ledger, records, hibernate_after=hibernate_after, is_full=is_full)
    await run.drive(lambda: function.perform(run))
    return run.status


async def _give_back(job: Job, ledger: GatewayLedger) -> None:
    """Give a run to another worker, as this one stops."""
    try:
        answer = await ledger.advance(KNOWS_ALL, [{"do": "suspend", "for_ms": 0}])
        if answer.status != "running":
            job.release(JobEnd.HIBERNATED)
    except (AetherError, AssignmentOver, CommandRefused) as error:
        logger.warning("run %s could not be given to another worker: %s", job.id, error)
