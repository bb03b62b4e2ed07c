"""`aether tasks`: create tasks, find them, see what becomes of them, and move them on."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import made_up, parse_identity
from aether_trio.cli.options import Target, client_options
from aether_trio.cli.output import is_terminal, print_json, run_client, say
from aether_trio.cli.session import ClientSession, open_session
from aether_trio.cli.task_texts import as_json, print_list, print_one
from aether_trio.cli.task_watch import TaskWatch
from aether_trio.model.identity import Identity, Kind
from aether_trio.wire.pb import aether_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])
Op = pb.TaskOperation

_PAGE: Final = 500
_LIST: Final = 50

STATUSES: Final = {
    name.removeprefix("TASK_STATUS_").lower(): number for name, number in pb.TaskStatus.items() if number
}
GROUPS: Final = {
    "waiting": ("waiting_input", "waiting_authority", "waiting_dependency", "hibernated"),
    "live": ("queued", "running", "waiting_input", "waiting_authority", "waiting_dependency", "hibernated"),
    "ended": ("completed", "failed", "cancelled", "rejected"),
}
CLASSES: Final = {name.removeprefix("TASK_CLASS_").lower(): number for name, number in pb.TaskClass.items() if number}
PRIORITIES: Final = {
    name.removeprefix("TASK_PRIORITY_").lower(): number for name, number in pb.TaskPriority.items() if number
}
OFFLINE: Final = {
    name.removeprefix("TARGET_OFFLINE_POLICY_").lower(): number
    for name, number in pb.TargetOfflinePolicy.items()
    if number
}

_NEXT: Final = (
    ("task not found", "`aether tasks list` shows those of a workspace (--workspace); --as says who asks"),
    ("retry of a task", "only tasks that have failed or were cancelled are tried again"),
    ("the task has ended", "`aether tasks show` says how"),
    ("resume of a task", "only paused tasks are resumed"),
    ("so it cannot be started", "register it with `aether agents register`, or let the task wait with --offline queue"),
    ("is not connected", "let the task wait with --offline queue"),
)
"""What to do about a refusal, by a part of its text."""


@click.group(
    name="tasks",
    epilog="""
\b
Examples:
  aether tasks create resize photo-1.jpg --pool resizer
  aether tasks create report - --pool reporter --max-attempts 5 --priority high < order.json
  aether tasks list --status live
  aether tasks list --status failed --json | jq -r .[].task_id
  aether tasks watch TASK_ID --from start
  aether tasks retry TASK_ID
""",
)
def command() -> None:
    """See and change what is to be done. A worker is a program: docs/tasks.md says how it is written."""


def task_options(function: F) -> F:
    """What every subcommand takes: the gateway and who asks, handed over as `target` and `who`."""

    @click.option("--as", "viewer", metavar="IDENTITY", help="Who asks.  [default: a made-up service]")
    @client_options
    @functools.wraps(function)
    def wrapper(target: Target, viewer: str | None, **kwargs: Any) -> Any:
        who = parse_identity(viewer) if viewer else made_up(Kind.SERVICE)
        return function(target=target, who=who, **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


workspace_option = click.option(
    "--workspace", default="default", show_default=True, envvar="AETHER_WORKSPACE", help="The workspace."
)


@command.command("list")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([*STATUSES, *GROUPS]),
    help="Only these; may be repeated. `waiting`, `live` and `ended` are several.",
)
@click.option("--type", "task_type", default="", metavar="TYPE", help="Only this type.")
@click.option("--creator", metavar="IDENTITY", help="Only those that this participant has created.")
@click.option("--parent", default="", metavar="TASK_ID", help="Only those below this task, at any depth.")
@click.option("--correlation", default="", metavar="ID", help="Only those with this correlation id.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=_LIST, show_default=True, help="At most so many.")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@task_options
def list_tasks(
    target: Target,
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
    wanted = pb.TaskFilter(
        workspace=workspace,
        task_type=task_type,
        parent_task_id=parent,
        include_descendants=bool(parent),
        correlation_id=correlation,
        statuses=[pb.TaskStatus.ValueType(number) for number in _numbers(statuses)],
    )
    if creator:
        one = parse_identity(creator)
        wanted.creator_actor.CopyFrom(pb.PrincipalRef(principal_type=one.type_name, principal_id=one.text))
    tasks, more = run_client(_list, target, who, wanted, limit)
    if as_array:
        print_json([as_json(task) for task in tasks], indent=2)
        return
    print_list(tasks, f"no such task in the workspace {workspace}")
    if more and is_terminal():
        say(f"there are more than these {limit}; see --limit and --status", err=True)


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted({STATUSES[one] for name in names for one in GROUPS.get(name, (name,))})


async def _list(target: Target, who: Identity, wanted: pb.TaskFilter, limit: int) -> tuple[list[pb.TaskInfo], bool]:
    """So many at most, and whether there are more."""
    found: list[pb.TaskInfo] = []
    wanted.limit = min(_PAGE, limit + 1)
    async with open_session(target, who) as session, aclosing(pages_of(session, wanted)) as pages:
        async for page in pages:
            found += page
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


async def pages_of(session: ClientSession, wanted: pb.TaskFilter) -> AsyncGenerator[Sequence[pb.TaskInfo], None]:
    """All that fit, page by page. Raises CliError."""
    wanted.limit = wanted.limit or _PAGE
    while True:
        query = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=wanted)
        answer = (await session.request(pb.UpstreamMessage(task_query=query))).task_query
        if not answer.success:
            refuse(answer.error)
        yield answer.tasks
        wanted.page_token = answer.next_page_token
        if not answer.next_page_token:
            return


@command.command()
@click.argument("task_id")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@task_options
def show(target: Target, who: Identity, task_id: str, as_object: bool) -> None:
    """Show all that is told of a task. Its payload is its worker's."""
    print_one(run_client(_get, target, who, task_id), as_object=as_object)


async def _get(target: Target, who: Identity, task_id: str) -> pb.TaskInfo:
    async with open_session(target, who) as session:
        return await get_task(session, task_id)


async def get_task(session: ClientSession, task_id: str) -> pb.TaskInfo:
    """One task. Raises CliError."""
    query = pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id)
    answer = (await session.request(pb.UpstreamMessage(task_query=query))).task_query
    if not answer.success:
        refuse(answer.error)
    return answer.task


@command.command()
@click.argument("task_type", metavar="TYPE")
@click.argument("payload", default="", metavar="[PAYLOAD|-]")
@click.option("--pool", default="", metavar="IMPLEMENTATION", help="For any worker of this implementation.")
@click.option("--target", "identity", default="", metavar="IDENTITY", help="For this participant.")
@click.option(
    "--offline", type=click.Choice(list(OFFLINE)), help="If the target is not connected.  [default: orchestrate]"
)
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="May be repeated; also its deadlines, see above.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
@click.option("--class", "task_class", type=click.Choice(list(CLASSES)), help="How patient it is with its worker.")
@click.option("--max-attempts", type=click.IntRange(min=1), help="Try again when it fails, up to so often in all.")
@click.option(
    "--retry-delay", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="SECONDS",
    help="Before the second attempt; doubled for each further one.",
)  # fmt: skip
@click.option("--key", default="", metavar="KEY", help="Create it once: the same key finds the same task for a day.")
@click.option("--correlation", default="", metavar="ID", help="A name to find it by, with others.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@workspace_option
@task_options
def create(
    target: Target,
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
    key: str,
    correlation: str,
    as_object: bool,
) -> None:
    """Create a task of TYPE and print its id. The payload is text; - reads standard input.

    Deadlines are metadata, in milliseconds: schedule_to_start_ms while it waits for a worker, start_to_close_ms for each
    attempt, heartbeat_timeout_ms without progress, schedule_to_close_ms for all of it.
    """
    if bool(pool) == bool(identity):
        raise click.UsageError("say who is to do it: either --pool IMPLEMENTATION or --target IDENTITY.")
    request = pb.CreateTaskRequest(
        task_type=task_type,
        workspace=workspace,
        assignment_mode=pb.POOL if pool else pb.TARGETED,
        target_implementation=pool,
        target_agent_id=identity,
        metadata=dict(_pair(one) for one in metadata),
        payload=sys.stdin.buffer.read() if payload == "-" else payload.encode(),
        priority=pb.TaskPriority.ValueType(PRIORITIES[priority]),
        idempotency_key=key,
        correlation_id=correlation,
    )
    if task_class:
        request.task_class = pb.TaskClass.ValueType(CLASSES[task_class])
    if offline:
        request.target_offline_policy = pb.TargetOfflinePolicy.ValueType(OFFLINE[offline])
    if max_attempts:
        request.retry_policy.max_attempts = max_attempts
        request.retry_policy.initial_delay_ms = round(retry_delay * 1000)
    answer = run_client(_create, target, who, request)
    if as_object:
        told = {"task_id": answer.task_id, "status": answer.status, "assigned_to": answer.assigned_to}
        print_json(told)
    else:
        say(answer.task_id)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--metadata")
    return name, value


async def _create(target: Target, who: Identity, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
    async with open_session(target, who) as session:
        answer = (await session.request(pb.UpstreamMessage(create_task=request))).create_task
        if not answer.success:
            text = answer.error_message.removeprefix(f"{answer.error_code}: ")
            refuse(f"{answer.error_code}: {text}" if answer.error_code else text)
        return answer


def _moving(name: str, op: Op.OpType.ValueType, done: str, text: str, *, reason: bool = False) -> None:
    """One subcommand for a move of tasks."""

    @click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
    @task_options
    def move(target: Target, who: Identity, task_ids: tuple[str, ...], reason: str = "") -> None:
        run_client(move_tasks, target, who, op, task_ids, reason, done)

    if reason:
        move = click.option("--reason", default="", help="Why, for those who follow the task.")(move)
    command.command(name, help=text)(move)


async def move_tasks(
    target: Target, who: Identity, op: Op.OpType.ValueType, task_ids: tuple[str, ...], reason: str, done: str
) -> None:
    async with open_session(target, who) as session:
        for task_id in task_ids:
            message = pb.UpstreamMessage(task_op=Op(op=op, task_id=task_id, reason=reason))
            answer = (await session.request(message)).task_op
            if not answer.success:
                refuse(f"{task_id}: {answer.error}")
            say(f"{task_id} is {done}")


_moving(
    "cancel", Op.CANCEL, "cancelled", "Cancel tasks: nobody begins them, and a worker that has one is told to stop."
)
_moving("retry", Op.RETRY, "queued again", "Try tasks again that have failed or were cancelled.")
_moving("resume", Op.RESUME, "resumed", "Let tasks go on that wait, for a person for instance.")


@command.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID...")
@click.option("--recursive", is_flag=True, help="With the tasks below them.")
@click.option(
    "--from", "start", type=click.Choice(["now", "start"]), default="now", show_default=True, help="The first event."
)
@click.option("--until-end", is_flag=True, help="Stop when all have ended; exit code 1 unless all are completed.")
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and event.")
@task_options
def watch(
    target: Target,
    who: Identity,
    task_ids: tuple[str, ...],
    recursive: bool,
    start: str,
    until_end: bool,
    as_lines: bool,
) -> None:
    """Show what happens to tasks, as it happens, until Ctrl-C. A failure that is to be tried again is an end, too."""
    watch = TaskWatch(task_ids, recursive, start == "start", until_end, as_lines, get_task)
    ends = run_client(watch.run, target, who)
    if any(status != pb.TASK_STATUS_COMPLETED for status in ends.values()):
        raise SystemExit(exits.FAILED)


def refuse(text: str) -> NoReturn:
    """Raise what the gateway said no with, and what to do about it."""
    hint = next((hint for part, hint in _NEXT if part in text), "")
    raise exits.CliError(f"{text}; {hint}" if hint else text)
