"""`aether workflows schedules`: lists, shows, pauses and backfills schedules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import click

from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.workflows.connection import open_workflows
from aether_trio.cli.workflows.kinds import Found, find_other, list_others, print_other, print_others
from aether_trio.cli.workflows.texts import when_text
from aether_trio.client.operations.workflow import Workflow, WorkflowAnswer
from aether_trio.model.identity import Identity

SCHEDULE: Final = "schedule"
DEFAULT_NEXT: Final = 3


@click.group(
    epilog="""
\b
Examples:
  aether workflows schedules list
  aether workflows schedules show nightly --next 10
  aether workflows schedules pause nightly
  aether workflows schedules backfill nightly --from 2026-11-01 --to 2026-11-08
"""
)
def schedules() -> None:
    """Show schedules and their next moments, pause them, or fill the past.

    Schedules are applied by files: `aether workflows apply`. `aether workflows pause` is for
    executions.
    """


@schedules.command("list")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_schedules(target: GatewayTarget, who: Identity, workspace: str, as_array: bool) -> None:
    """Show the schedules of a workspace, and those of all workspaces."""
    found = run_client(_list, target, who, workspace)
    if as_array:
        print_json(found, indent=2)
    else:
        print_others(found, SCHEDULE, workspace)


async def _list(target: GatewayTarget, who: Identity, workspace: str) -> list[Found]:
    async with open_workflows(target, who) as client:
        return await list_others(client.workflow, SCHEDULE, workspace)


@schedules.command()
@click.argument("schedule")
@click.option(
    "--next", "count", type=click.IntRange(0, 1_000), default=DEFAULT_NEXT, show_default=True,
    help="How many of its next moments.",
)  # fmt: skip
@click.option("--json", "as_object", is_flag=True, help="A JSON object, with `next`, the moments.")
@workspace_option
@access_options
def show(target: GatewayTarget, who: Identity, workspace: str, schedule: str, count: int, as_object: bool) -> None:
    """Show a schedule: what it does, its next moments, and what was refused.

    A `jitter` of the schedule moves all moments but the first one.
    """
    found = run_client(_find, target, who, workspace, schedule)
    moments = next_moments(found, count)
    if as_object:
        print_json({**found, "next": [one.isoformat().replace("+00:00", "Z") for one in moments]}, indent=2)
        return
    print_other(found)
    for one in moments:
        say(f"next  {when_text(one)}")


async def _find(target: GatewayTarget, who: Identity, workspace: str, name: str) -> Found:
    async with open_workflows(target, who) as client:
        return await find_other(client.workflow, SCHEDULE, name, workspace)


def next_moments(found: Found, count: int) -> list[datetime]:
    """Return the next moments of a schedule as the gateway shows it; none if it rests."""
    from aether_trio.model.workflows.timetables import TimetableError, read_timetable
    from aether_trio.services.workflows.documents.cron import cron_matches

    try:
        first = datetime.fromisoformat(str(found.get("next_fire_at") or ""))
    except ValueError:
        return []
    if first.tzinfo is None or not count:
        return []
    first_ms = round(first.timestamp() * 1000)
    kind, expression, zone = (str(found.get(name) or "") for name in ("schedule_type", "schedule_expr", "timezone"))
    try:
        table = read_timetable(kind, expression, default_zone=zone or "UTC", matches=cron_matches)
        later = list(islice(table.after(first_ms, first_ms), count - 1))
    except TimetableError:  # of another engine
        later = []
    return [datetime.fromtimestamp(one / 1000, UTC) for one in (first_ms, *later)]


def _change(name: str, change: Callable[[Workflow, str, str], Awaitable[WorkflowAnswer]], done: str) -> None:
    """Add a command that changes schedules."""

    @click.argument("names", nargs=-1, required=True, metavar="SCHEDULE...")
    @workspace_option
    @access_options
    def steer(target: GatewayTarget, who: Identity, workspace: str, names: tuple[str, ...]) -> None:
        run_client(_each, target, who, workspace, names, change, done)

    text = {
        "pause": "Let schedules fire nothing until they are resumed; what they have started goes on.",
        "resume": "Let paused schedules go on with their next moment.",
    }
    schedules.add_command(click.command(name, help=text[name])(steer))


async def _each(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    names: tuple[str, ...],
    change: Callable[[Workflow, str, str], Awaitable[WorkflowAnswer]],
    done: str,
) -> None:
    async with open_workflows(target, who) as client:
        for name in names:
            await change(client.workflow, name, workspace)
            say(f"schedule {name} {done}")


_change("pause", lambda workflow, name, place: workflow.pause_schedule(name, workspace=place), "is paused")
_change("resume", lambda workflow, name, place: workflow.resume_schedule(name, workspace=place), "goes on")


class _PastMoment(click.ParamType[datetime]):
    """A date or moment of ISO 8601; without a zone it is the local one."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is no moment such as 2026-11-29, 2026-11-29T06:00 or 2026-11-29T06:00:00Z", param, ctx
            )


@schedules.command()
@click.argument("schedule")
@click.option(
    "--from", "begin", type=_PastMoment(), required=True, metavar="MOMENT", help="The first one, such as 2026-11-01."
)
@click.option("--to", "end", type=_PastMoment(), metavar="MOMENT", help="Before this one.  [default: now]")
@click.option("--json", "as_object", is_flag=True, help="A JSON object: the schedule.")
@workspace_option
@access_options
def backfill(
    target: GatewayTarget, who: Identity, workspace: str, schedule: str, begin: datetime, end: datetime | None,
    as_object: bool,
) -> None:  # fmt: skip
    """Fire a schedule for its moments of the past, as if it had been there.

    They fire from now on, as many at a time as the schedule's `max_concurrent` allows, also those
    that have fired already. A moment without a zone is local time.
    """
    until = end or datetime.now(UTC)
    if begin >= until:
        raise click.UsageError("--from is before --to, and in the past.")
    answer = run_client(_backfill, target, who, workspace, schedule, begin, until)
    if as_object:
        print_json(answer.json(), indent=2)
    else:
        say(answer.message)


async def _backfill(
    target: GatewayTarget, who: Identity, workspace: str, name: str, begin: datetime, end: datetime
) -> WorkflowAnswer:
    async with open_workflows(target, who) as client:
        return await client.workflow.backfill_schedule(name, begin, end, workspace=workspace)
