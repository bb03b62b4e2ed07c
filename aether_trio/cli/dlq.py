"""`aether dlq`: lists, requeues and resolves dead letters of tasks."""

from __future__ import annotations

import getpass
from contextlib import aclosing
from typing import Final
from urllib.parse import quote, urlencode

import click

from aether_trio.cli import exits
from aether_trio.cli.http import stream_lines
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, OpsTarget, ops_options, workspace_option
from aether_trio.cli.output import print_bytes, print_json, run_client, say
from aether_trio.cli.task_client import open_tasks, task_id_of
from aether_trio.cli.task_texts import as_json, print_list, print_one
from aether_trio.cli.tasks import move_tasks, pages_of
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.model.identity import Identity
from aether_trio.wire.ops_port import ASKED_BY

MARK: Final = "_dead_letter"
"""The metadata key of a dead letter, a FAILED task; its value is OPEN, or who resolved it."""
OPEN: Final = "true"


@click.group(
    name="dlq",
    epilog="""
\b
Examples:
  aether dlq list
  aether dlq list --json | jq -r .[].error
  aether dlq show TASK_ID
  aether dlq show TASK_ID --payload
  aether dlq requeue TASK_ID
  aether dlq discard TASK_ID
  aether dlq resolve TASK_ID --notes "ordered by hand"
""",
)
def command() -> None:
    """List, requeue, discard and resolve dead letters: tasks, messages, rules.

    A task is one when it has used up its attempts, or is past its last deadline. A failure that a
    worker has reported is none: `aether tasks list --status failed` shows those. A message is one
    when it has crashed its agent again and again; its type is dead_message. A rule that could not
    act on an event is one of type workflow_rule, which acts again when it is requeued.
    """


@command.command("list")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--all", "resolved_too", is_flag=True, help="Also those that are resolved.")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_letters(
    target: GatewayTarget, who: Identity, workspace: str, limit: int, resolved_too: bool, as_array: bool
) -> None:
    """Show the dead letters of a workspace, the latest first."""
    letters = run_client(_list, target, who, workspace, limit, resolved_too)
    if as_array:
        print_json([as_json(task) for task in letters], indent=2)
    else:
        print_list(letters, f"no dead letter in the workspace {workspace}")


async def _list(target: GatewayTarget, who: Identity, workspace: str, limit: int, resolved_too: bool) -> list[Task]:
    found: list[Task] = []
    async with (
        open_tasks(target, who) as tasks,
        aclosing(pages_of(tasks, workspace=workspace, statuses=[TaskStatus.FAILED])) as pages,
    ):
        async for page in pages:
            found += [
                task for task in page if task.metadata.get(MARK) == OPEN or (resolved_too and MARK in task.metadata)
            ]
            if len(found) >= limit:
                break
    return found[:limit]


@command.command()
@click.argument("task_id")
@click.option("--payload", is_flag=True, help="Only the payload, of the task or of the message.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@access_options
def show(target: GatewayTarget, who: Identity, task_id: str, payload: bool, as_object: bool) -> None:
    """Show all fields of a dead letter but its payload."""
    if payload and as_object:
        raise click.UsageError("a payload is bytes: give either --payload or --json.")
    letter = run_client(_get, target, who, task_id)
    if payload:
        print_bytes(run_client(_payload, target, who, letter.task_id))
    else:
        print_one(letter, as_object=as_object)


async def _payload(target: GatewayTarget, who: Identity, task_id: str) -> bytes:
    async with open_tasks(target, who) as tasks:
        return await tasks.payload(task_id)


async def _get(target: GatewayTarget, who: Identity, task_id: str) -> Task:
    async with open_tasks(target, who) as tasks:
        task = await tasks.get(await task_id_of(tasks, task_id))
    if MARK not in task.metadata:
        raise exits.CliError(f"{task_id} is no dead letter; `aether tasks show {task_id}` says what it is")
    return task


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@access_options
def requeue(target: GatewayTarget, who: Identity, task_ids: tuple[str, ...]) -> None:
    """Try tasks again, with all their attempts; append messages to their topics again.

    A message comes last in its topic, from its sender.
    """
    letters = [run_client(_get, target, who, task_id).task_id for task_id in task_ids]
    run_client(move_tasks, target, who, Tasks.retry, letters, "queued again")


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@access_options
def discard(target: GatewayTarget, who: Identity, task_ids: tuple[str, ...]) -> None:
    """End dead letters for good: they are cancelled, and are deleted like other tasks."""
    letters = [run_client(_get, target, who, task_id).task_id for task_id in task_ids]
    run_client(move_tasks, target, who, Tasks.cancel, letters, "discarded")


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@click.option("--notes", default="", metavar="TEXT", help="What was done about it.")
@click.option("--by", default=getpass.getuser, metavar="NAME", help="Who has seen to it.  [default: your login]")
@ops_options
def resolve(task_ids: tuple[str, ...], notes: str, by: str, ops: OpsTarget) -> None:
    """Mark dead letters as resolved. They stay FAILED.

    The protocol has no operation for this, so it goes to the ops port: on loopback in development
    mode, elsewhere with ops.tail_token.
    """
    query = urlencode({"by": by, "notes": notes})
    for task_id in task_ids:
        run_client(_resolve, ops, f"/v1/dlq/{quote(task_id, safe='')}/resolve?{query}")
        say(f"{task_id}  resolved")


async def _resolve(ops: OpsTarget, path: str) -> None:
    async with aclosing(stream_lines(ops, path, method="POST", headers={ASKED_BY: "aether dlq"})) as lines:
        async for _ in lines:
            pass
