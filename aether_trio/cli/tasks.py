"""`aether tasks`: create, list, watch, cancel, retry and resume tasks."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeAlias, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal, open_client, refusal_text
from aether_trio.cli.identities import ADMINISTRATOR, access_options, asking_options, parse_identity
from aether_trio.cli.options import GatewayTarget, name_and_value, workspace_option
from aether_trio.cli.output import is_terminal, print_bytes, print_json, run_client, say
from aether_trio.cli.task_client import open_tasks, task_id_of
from aether_trio.cli.task_end import show_end, wait_for_end, wait_limit
from aether_trio.cli.task_refusals import explained_refusals, refused
from aether_trio.cli.task_texts import as_json, print_list, print_one, state_text
from aether_trio.cli.task_watch import TaskWatch
from aether_trio.client import AetherError
from aether_trio.client.operations import RetryPolicy, TargetOfflinePolicy, TaskClass, TaskPriority, TaskStatus
from aether_trio.client.operations.task_values import CreatedTask, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.senders import ToWork
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.text import line

_PAGE: Final = 500
_LIST: Final = 50
_QUESTION: Final = 200

STATUSES: Final = {one.name.lower(): one for one in TaskStatus if one}
GROUPS: Final = {
    "waiting": ("waiting_input", "waiting_authority", "waiting_dependency", "hibernated"),
    "live": ("queued", "running", "waiting_input", "waiting_authority", "waiting_dependency", "hibernated"),
    "ended": ("completed", "failed", "cancelled", "rejected"),
}
CLASSES: Final = {one.name.lower(): one for one in TaskClass if one}
PRIORITIES: Final = {one.name.lower(): one for one in TaskPriority if one}
OFFLINE: Final = {one.name.lower(): one for one in TargetOfflinePolicy if one}

F = TypeVar("F", bound=Callable[..., Any])

Move: TypeAlias = Callable[[Tasks, str], Awaitable[Task]]
"""An operation that moves a task to another state."""


@click.group(
    name="tasks",
    epilog="""
\b
Examples:
  aether tasks create resize photo-1.jpg --pool resizer
  aether tasks create report - --pool reporter --max-attempts 5 --priority high < order.json
  aether tasks list --status live
  aether tasks list --status failed --json | jq -r .[].task_id
  aether tasks create total 1,2,3 --pool adder --wait
  aether tasks wait TASK_ID --timeout 60 > result.json
  aether tasks answer TASK_ID approve --text "go on"
  aether tasks watch TASK_ID --from start
  aether tasks retry TASK_ID
""",
)
def command() -> None:
    """Create, find, watch, answer, cancel and retry tasks.

    A worker is a program: docs/tasks.md says how it is written.
    """


create_options: Final = asking_options(Kind.SERVICE, "Who asks.  [default: a made-up service]")
answer_options: Final = asking_options(
    Kind.USER, f"Who answers.  [default: a window of the user {ADMINISTRATOR}, an administrator]"
)


@command.command("list")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([*STATUSES, *GROUPS]),
    help="Only these; may be repeated. `waiting` are all four that wait, `live` all that have not ended.",
)
@click.option("--type", "task_type", default="", metavar="TYPE", help="Only this type.")
@click.option("--creator", metavar="IDENTITY", help="Only those that this participant has created.")
@click.option("--parent", default="", metavar="TASK_ID", help="Only those below this task, at any depth.")
@click.option("--correlation", default="", metavar="ID", help="Only those with this correlation id.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=_LIST, show_default=True, help="At most so many.")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_tasks(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    statuses: tuple[str, ...],
    task_type: str,
    creator: str | None,
    parent: str,
    correlation: str,
    limit: int,
    as_array: bool,
) -> None:
    """Show tasks of a workspace, the latest change first."""
    wanted = {
        "workspace": workspace,
        "task_type": task_type,
        "parent_task_id": parent,
        "include_descendants": bool(parent),
        "correlation_id": correlation,
        "statuses": _statuses(statuses),
        "creator": parse_identity(creator).text if creator else None,
    }
    tasks, more = run_client(_list, target, who, wanted, limit)
    if as_array:
        print_json([as_json(task) for task in tasks], indent=2)
        return
    print_list(tasks, f"no such task in the workspace {workspace}")
    if more and is_terminal():
        say(f"there are more than these {limit}; see --limit and --status", err=True)


def _statuses(names: Iterable[str]) -> list[TaskStatus]:
    return sorted({STATUSES[one] for name in names for one in GROUPS.get(name, (name,))})


async def _list(target: GatewayTarget, who: Identity, wanted: dict[str, Any], limit: int) -> tuple[list[Task], bool]:
    """Return at most `limit` tasks, and whether there are more."""
    found: list[Task] = []
    async with open_tasks(target, who) as tasks:
        wanted["parent_task_id"] = await task_id_of(tasks, wanted["parent_task_id"])
        async with aclosing(pages_of(tasks, min(_PAGE, limit + 1), **wanted)) as pages:
            async for page in pages:
                found += page
                if len(found) > limit:
                    break
    return found[:limit], len(found) > limit


async def pages_of(tasks: Tasks, size: int = _PAGE, **wanted: Any) -> AsyncGenerator[Sequence[Task], None]:
    """Yield all matching tasks, page by page. `wanted` are keywords of `Tasks.query`."""
    token = ""
    while True:
        page = await tasks.query(limit=size, page_token=token, **wanted)
        yield page.tasks
        token = page.next_page_token
        if not token:
            return


@command.command()
@click.argument("task_id")
@click.option("--payload", is_flag=True, help="Only the payload, as its creator gave it.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@access_options
def show(target: GatewayTarget, who: Identity, task_id: str, payload: bool, as_object: bool) -> None:
    """Show all fields of a task but its payload, and why it waits if it does."""
    if payload and as_object:
        raise click.UsageError("a payload is bytes: give either --payload or --json.")
    if payload:
        print_bytes(run_client(_payload, target, who, task_id))
    else:
        print_one(run_client(_get, target, who, task_id), as_object=as_object)


async def _payload(target: GatewayTarget, who: Identity, task_id: str) -> bytes:
    async with open_tasks(target, who) as tasks:
        return await tasks.payload(await task_id_of(tasks, task_id))


async def _get(target: GatewayTarget, who: Identity, task_id: str) -> Task:
    async with open_tasks(target, who) as tasks:
        return await tasks.get(await task_id_of(tasks, task_id))


DEADLINES: Final = (
    ("--schedule-to-start", "How long it may wait for a worker."),
    ("--start-to-close", "How long each attempt may take, without its waits."),
    ("--heartbeat-timeout", "How long its worker may report no progress."),
    ("--schedule-to-close", "How long all of it may take."),
)


def deadline_options(function: F) -> F:
    """Add the deadlines of a task, in seconds, under their names in `Tasks.create`."""
    for name, text in reversed(DEADLINES):
        parameter = f"{name.removeprefix('--').replace('-', '_')}_s"
        option = click.option(name, parameter, type=click.FloatRange(min=0), metavar="SECONDS", help=text)
        function = option(function)
    return function


@command.command()
@click.argument("task_type", metavar="TYPE")
@click.argument("payload", default="", metavar="[PAYLOAD|-]")
@click.option("--pool", default="", metavar="IMPLEMENTATION", help="For any worker of this implementation.")
@click.option("--target", "identity", default="", metavar="IDENTITY", help="For this participant.")
@click.option(
    "--offline", type=click.Choice(list(OFFLINE)), help="If the target is not connected.  [default: orchestrate]"
)
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
@click.option("--class", "task_class", type=click.Choice(list(CLASSES)), help="How patient it is with its worker.")
@click.option("--max-attempts", type=click.IntRange(min=1), help="Try again when it fails, up to so often in all.")
@click.option(
    "--retry-delay", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="SECONDS",
    help="Before the second attempt; doubled for each further one.",
)  # fmt: skip
@deadline_options
@click.option(
    "--idempotency-key", default="", metavar="KEY", help="Create it once: the same key finds the same task for a day."
)
@click.option("--correlation", default="", metavar="ID", help="A name to find it by, with others.")
@click.option(
    "--wait",
    "waits",
    is_flag=True,
    help="Wait for its end, however long it takes without --timeout, and print its result.",
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@workspace_option
@create_options
def create(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    task_type: str,
    payload: str,
    pool: str,
    identity: str,
    offline: str | None,
    metadata: tuple[str, ...],
    priority: str,
    task_class: str | None,
    max_attempts: int | None,
    retry_delay: float,
    idempotency_key: str,
    correlation: str,
    waits: bool,
    as_object: bool,
    **deadlines: float | None,
) -> None:
    """Create a task of TYPE and print its id; with --wait its result instead.

    The payload is text; - reads standard input.
    """
    if waits and as_object:
        raise click.UsageError("--wait prints the result of the task: leave --json out.")
    if bool(pool) == bool(identity):
        raise click.UsageError("a task needs a worker: give either --pool IMPLEMENTATION or --target IDENTITY.")
    retries = RetryPolicy(max_attempts=max_attempts, initial_delay_s=retry_delay) if max_attempts else None
    wanted = {
        "payload": sys.stdin.buffer.read() if payload == "-" else payload.encode(),
        "pool": pool,
        "target": identity,
        "workspace": workspace,
        "metadata": dict(name_and_value(one, "--metadata") for one in metadata),
        "priority": PRIORITIES[priority],
        "task_class": CLASSES[task_class] if task_class else TaskClass.UNSPECIFIED,
        "offline_policy": OFFLINE[offline] if offline else TargetOfflinePolicy.UNSPECIFIED,
        "retry_policy": retries,
        "idempotency_key": idempotency_key,
        "correlation_id": correlation,
        **deadlines,
    }
    task = run_client(_create, target, who, task_type, wanted)
    if waits:
        say(task.task_id, err=True)
        show_end(run_client(wait_for_end, target, who, task.task_id, wait_limit(target)))
        return
    if as_object:
        print_json({"task_id": task.task_id, "status": task.status, "assigned_to": task.assigned_to})
    else:
        say(task.task_id)


async def _create(target: GatewayTarget, who: Identity, task_type: str, wanted: dict[str, Any]) -> CreatedTask:
    async with open_tasks(target, who) as tasks:
        return await tasks.create(task_type, **wanted)


@command.command()
@click.argument("task_id")
@access_options
def wait(target: GatewayTarget, who: Identity, task_id: str) -> None:
    """Wait until a task has ended, and print its result.

    A failed attempt that is followed by another one is no end. JSON is printed as JSON, bytes as
    they are; a task without a result prints nothing. Without --timeout it waits for as long as the
    task takes, also while the gateway is restarted.

    \b
    Exit codes:
      0    the task is completed
      1    it has failed, or was cancelled or rejected; the reason is on standard error
      124  it has not ended within --timeout
    """
    show_end(run_client(wait_for_end, target, who, task_id, wait_limit(target)))


@command.command()
@click.argument("task_id")
@click.argument("decision", type=click.Choice(["approve", "reject"]))
@click.option("--choice", default="", metavar="TEXT", help="One of the choices that the question offers.")
@click.option("--text", default="", metavar="TEXT", help="What to say besides.")
@click.option(
    "--question", default="", metavar="ID", help="Only if it still asks this one, as `aether tasks show` names it."
)
@answer_options
def answer(
    target: GatewayTarget, who: Identity, task_id: str, decision: str, choice: str, text: str, question: str
) -> None:
    """Answer the question that a task asks a person; `aether tasks show` shows it."""
    approved = decision == "approve"
    found = run_client(_answer, target, who, task_id, approved, choice, text, question)
    asked = "" if found.question is None else line(found.question.question, _QUESTION)
    say(f"{found.task_id}  {'approved' if approved else 'rejected'}: {asked}")


async def _answer(
    target: GatewayTarget, who: Identity, given: str, approved: bool, choice: str, text: str, meant: str
) -> Task:
    async with open_client(target, who) as client:
        with explained_refusals():
            if not isinstance(client, ToWork):
                raise exits.CliError(f"{who} may not send to tasks, so it answers no question")
            tasks = client.tasks.within(None)
            task = await tasks.get(await task_id_of(tasks, given))
            if (question := task.question) is None:
                raise exits.CliError(f"task {task.task_id} asks no question: it is {state_text(task)}")
            if meant and meant != question.question_id:
                raise exits.CliError(f"task {task.task_id} asks another question now: {question.question!r}")
            if choice and choice not in question.choices:
                raise click.BadParameter(f"{choice!r} is none of: {', '.join(question.choices) or 'no choices'}")
            if approved and question.choices and not choice:
                raise click.UsageError(f"the question offers choices; give --choice: {', '.join(question.choices)}")
            await client.answer(task, approved, choice=choice, text=text)
            return task


def _add_move(name: str, move: Move, done: str, text: str) -> None:
    """Add one subcommand that moves tasks to another state."""

    @click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
    @access_options
    def run(target: GatewayTarget, who: Identity, task_ids: tuple[str, ...]) -> None:
        run_client(move_tasks, target, who, move, task_ids, done)

    command.command(name, help=text)(run)


async def move_tasks(target: GatewayTarget, who: Identity, move: Move, task_ids: Sequence[str], done: str) -> None:
    """Move tasks to another state, and print each. Raises CliError if one is refused."""
    async with open_tasks(target, who) as tasks:
        for given in task_ids:
            task_id = await task_id_of(tasks, given)
            try:
                await move(tasks, task_id)
            except AetherError as error:
                if not is_refusal(error):
                    raise
                raise refused(f"task {task_id} cannot be {done}: {refusal_text(error)}") from error
            say(f"{task_id} is {done}")


_add_move(
    "cancel",
    Tasks.cancel,
    "cancelled",
    "Cancel tasks: no worker begins them, and a worker that has one is told to stop.",
)
_add_move("retry", Tasks.retry, "queued again", "Try tasks again that have failed or were cancelled.")
_add_move("resume", Tasks.resume, "resumed", "Let tasks go on that wait, for a person for instance.")


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@click.option("--recursive", is_flag=True, help="With the tasks below them.")
@click.option(
    "--from", "start", type=click.Choice(["now", "start"]), default="now", show_default=True, help="The first event."
)
@click.option("--until-end", is_flag=True, help="Stop when all have ended; exit code 1 unless all are completed.")
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and event.")
@access_options
def watch(
    target: GatewayTarget,
    who: Identity,
    task_ids: tuple[str, ...],
    recursive: bool,
    start: str,
    until_end: bool,
    as_lines: bool,
) -> None:
    """Show the events of tasks as they happen, until Ctrl-C.

    A failed attempt that is followed by another one is no end.
    """
    watch = TaskWatch(task_ids, recursive, start == "start", until_end, as_lines)
    ends = run_client(watch.run, target, who)
    if any(status is not TaskStatus.COMPLETED for status in ends.values()):
        raise SystemExit(exits.FAILED)
