"""Follows the startup task of an agent at the gateway; reports its end.

A startup task is the gateway's record of a start. The gateway may cancel it, let it fail, or assign
it to another orchestrator; then the process that was started for it has to stop.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

import trio

from aether_trio.client import AetherError, OrchestratorClient
from aether_trio.client.jobs.job import LOST
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.task_events import StatusChanged
from aether_trio.orchestrator.launch_plan import AgentStart

RETRY_DELAY_S: Final = 0.5  # seconds before a call is repeated that failed with the connection
POLL_S: Final = 30.0  # seconds between two checks whether another orchestrator got the task
REPORT_S: Final = 60.0  # seconds for the report of a failed start, which times out without it
_FINAL: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})


async def watch_startup_task(client: OrchestratorClient, start: AgentStart, stop: Callable[[str], None]) -> None:
    """Call `stop(why)` when the process of an agent's start has to stop.

    Returns when the startup task cannot be followed any more: the process then goes on.
    """
    while True:
        try:
            try:
                await _follow(client, start, stop)
            except AetherError as error:
                if error.retryable:
                    raise
                # An orchestrator may be refused the task when another one has it.
                await _check_assignment(client, start, stop)
            return
        except AetherError as error:
            if not error.retryable:
                return
            await trio.sleep(RETRY_DELAY_S)


async def _follow(client: OrchestratorClient, start: AgentStart, stop: Callable[[str], None]) -> None:
    async with client.tasks.follow(start.task_id) as events:
        status = (await client.tasks.get(start.task_id)).status
        while True:
            # The token of a failed start is void: its agent cannot reconnect.
            if status is TaskStatus.CANCELLED:
                stop("its start was cancelled")
            elif status is TaskStatus.FAILED:
                stop("its start has failed")
            if status not in _FINAL:
                await _check_assignment(client, start, stop)
            with trio.move_on_after(math.inf if status is TaskStatus.RUNNING or status in _FINAL else POLL_S):
                async for event in events:
                    if isinstance(event.event, StatusChanged):
                        status = event.event.to_status
                        break
                else:
                    return


async def _check_assignment(client: OrchestratorClient, start: AgentStart, stop: Callable[[str], None]) -> None:
    """Call `stop` if another orchestrator got the startup task. Raises AetherError."""
    if start.reference == start.task_id:
        return  # this gateway does not number assignments
    try:
        await client.tasks.claim(start.reference)
    except AetherError as error:
        if LOST not in error.message:
            raise
        stop("another orchestrator was given its start")


class EndReport(enum.Enum):
    """What an orchestrator tells the gateway of an agent's start that is over for it."""

    FAILED = "failed"  # it could not be started, or its process has failed
    DONE = "done"  # its process has ended with exit code 0
    BUSY = "busy"  # there is no room for it here, so another orchestrator may have it


async def report_end(
    client: OrchestratorClient, reference: str, reason: str, what: EndReport = EndReport.FAILED
) -> str:
    """Tell the gateway how a start ended; return "", or why that was not possible.

    The gateway refuses the report if the start is over. A lost report is repeated: messages may
    wait for the old process until it arrives. What a gateway does not take as DONE or BUSY, as the
    agent has not connected for example, is reported as a failure.
    """
    error: AetherError | None = None
    with trio.move_on_after(REPORT_S):
        while True:
            try:
                tasks = client.tasks.within(REPORT_S)
                match what:
                    case EndReport.FAILED:
                        await tasks.fail(reference, reason=reason)
                    case EndReport.DONE:
                        await tasks.complete(reference)
                    case EndReport.BUSY:
                        await tasks.reject(reference, reason=reason)
            except AetherError as raised:
                error = raised
                if raised.retryable:
                    await trio.sleep(RETRY_DELAY_S)
                elif what is EndReport.FAILED:
                    return ""
                else:
                    what = EndReport.FAILED
            else:
                return ""
    return f"no answer within {REPORT_S:g} s" if error is None else error.message
