"""`aether dlq`: tasks for which there is to be no further attempt, until a person has seen to them."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Final

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.options import Target
from aether_trio.cli.session import open_session
from aether_trio.cli.task_texts import as_json, print_list, print_one
from aether_trio.cli.tasks import get_task, move_tasks, pages_of, task_options, workspace_option
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

MARK: Final = "_dead_letter"
"""In the metadata of a dead letter, which is a FAILED task otherwise."""


@click.group(
    name="dlq",
    epilog="""
\b
Examples:
  aether dlq list
  aether dlq list --json | jq -r .[].error
  aether dlq show TASK_ID
  aether dlq requeue TASK_ID
""",
)
def command() -> None:
    """See to dead letters: tasks that have used up their attempts, or are past their last deadline.

    A failure that a worker has reported is none: `aether tasks list --status failed` shows those.
    """


@command.command("list")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@task_options
def list_letters(target: Target, who: Identity, workspace: str, limit: int, as_array: bool) -> None:
    """Show the dead letters of a workspace, the latest first."""
    letters = trio.run(_list, target, who, workspace, limit)
    if as_array:
        click.echo(json.dumps([as_json(task) for task in letters], indent=2, ensure_ascii=False))
    else:
        print_list(letters, f"no dead letter in the workspace {workspace}")


async def _list(target: Target, who: Identity, workspace: str, limit: int) -> list[pb.TaskInfo]:
    found: list[pb.TaskInfo] = []
    wanted = pb.TaskFilter(workspace=workspace, statuses=[pb.TASK_STATUS_FAILED])
    async with open_session(target, who) as session, aclosing(pages_of(session, wanted)) as pages:
        async for page in pages:
            found += [task for task in page if MARK in task.metadata]
            if len(found) >= limit:
                break
    return found[:limit]


@command.command()
@click.argument("task_id")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@task_options
def show(target: Target, who: Identity, task_id: str, as_object: bool) -> None:
    """Show all that is told of a dead letter."""
    task = trio.run(_get, target, who, task_id)
    if as_object:
        click.echo(json.dumps(as_json(task), indent=2, ensure_ascii=False))
    else:
        print_one(task)


async def _get(target: Target, who: Identity, task_id: str) -> pb.TaskInfo:
    async with open_session(target, who) as session:
        task = await get_task(session, task_id)
    if MARK not in task.metadata:
        raise exits.CliError(f"{task_id} is no dead letter; `aether tasks show {task_id}` says what it is")
    return task


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@task_options
def requeue(target: Target, who: Identity, task_ids: tuple[str, ...]) -> None:
    """Try dead letters again, with all their attempts before them."""
    for task_id in task_ids:
        trio.run(_get, target, who, task_id)
    trio.run(move_tasks, target, who, pb.TaskOperation.RETRY, task_ids, "", "queued again")
