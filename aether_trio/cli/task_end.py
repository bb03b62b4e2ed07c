"""Waits for the end of a task, over several connections, and shows its result."""

from __future__ import annotations

import json
import math
import sys
from typing import NamedTuple

import click
import trio
from click.core import ParameterSource

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_bytes, say, say_json
from aether_trio.cli.task_client import task_id_of
from aether_trio.cli.task_refusals import explained_refusals
from aether_trio.cli.task_texts import outcome_text
from aether_trio.client import TaskNotEnded
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.task_values import END_WORDS, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.model.identity import Identity

AGAIN_S = 1.0
"""Before the next connection."""
LOOK_S = 2.0
"""Before a person is told why the task waits."""


class TaskEnd(NamedTuple):
    """An ended task, and the data of its result if that is bytes or a checkpoint."""

    task: Task
    data: bytes | None = None


def wait_limit(target: GatewayTarget) -> float:
    """Return the limit of a wait in seconds: what --timeout says, by default none."""
    source = click.get_current_context().get_parameter_source("timeout_s")
    return math.inf if source is ParameterSource.DEFAULT else target.timeout_s


async def wait_for_end(target: GatewayTarget, who: Identity, given: str, limit_s: float) -> TaskEnd:
    """Wait for the end of the task whose id begins with `given`.

    A lost connection is made again. Raises CliError: after the limit, and if it is not there.
    """
    known = said = ""
    looked = sys.stderr is None or not sys.stderr.isatty()
    with trio.move_on_after(limit_s):
        while True:
            try:
                async with open_client(target, who, endless=True) as client:
                    with explained_refusals():
                        tasks = client.tasks.within(None)
                        known = known or await task_id_of(tasks, given)
                        if not looked:
                            looked = True
                            await _say_why(tasks, known)
                        task = await tasks.wait(known)
                        if task.result_checkpoint:
                            return TaskEnd(task, await tasks.saved_result(known))
                        return TaskEnd(task, task.result if isinstance(task.result, bytes) else None)
            except exits.CliError as error:
                if error.exit_code != exits.UNREACHABLE or not known:
                    raise
                if error.message != said:
                    said = error.message
                    say(f"{said}; trying again", err=True)
                await trio.sleep(AGAIN_S)
    raise exits.CliError(f"task {known or given} has not ended within {limit_s:g} s; it goes on", exits.NOT_YET)


async def _say_why(tasks: Tasks, task_id: str) -> None:
    """Tell a person why a task waits that has not ended after a while."""
    try:
        await tasks.wait(task_id, timeout=LOOK_S)
    except TaskNotEnded:
        if why := (await tasks.get(task_id)).queued_because:
            say(f"it waits: {why}", err=True)


def show_end(end: TaskEnd) -> None:
    """Print the result of a completed task. Raises CliError for another end."""
    task = end.task
    if task.status is not TaskStatus.COMPLETED:
        reason = f": {task.error}" if task.error else ""
        outcome = f" ({outcome_text(task)})" if task.outcome else ""
        raise exits.CliError(f"task {task.task_id} {END_WORDS[task.status]}{outcome}{reason}")
    if end.data is not None:
        print_bytes(end.data)
    elif task.has_result:
        say_json(json.dumps(task.result, ensure_ascii=False))
