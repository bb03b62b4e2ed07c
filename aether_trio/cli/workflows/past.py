"""Shows what happens in an execution, and what has happened."""

from __future__ import annotations

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import run_client
from aether_trio.cli.workflows.connection import (
    execution_id_of,
    open_workflows,
)
from aether_trio.cli.workflows.watching import ExecutionWatch, print_history
from aether_trio.model.identity import Identity


@click.command()
@click.argument("execution")
@click.option(
    "--from", "start", type=click.Choice(["now", "start"]), default="start", show_default=True, help="The first entry."
)
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and entry of the history.")
@access_options
def watch(target: GatewayTarget, who: Identity, execution: str, start: str, as_lines: bool) -> None:
    """Show what happens in an execution, step by step, until it has ended.

    The exit code is 1 unless it is completed. A gateway that restarts is waited for.
    """
    ended = run_client(ExecutionWatch(execution, from_start=start == "start", as_lines=as_lines).run, target, who)
    if ended.status != "completed":
        raise SystemExit(exits.FAILED)


@click.command()
@click.argument("execution")
@click.option(
    "--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only the entries behind this one."
)
@click.option(
    "--replay",
    "path",
    default="",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Replay it on the workflow of this file, and show where they part; the exit code is 1 then.",
)
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and entry.")
@access_options
def history(target: GatewayTarget, who: Identity, execution: str, after: int, path: str, as_lines: bool) -> None:
    """Show the history of an execution: what happened, and what followed from it."""
    if path:
        from aether_trio.cli.workflows.replays import replay_on_file

        replay_on_file(target, who, execution, path, as_lines)
        return
    run_client(_history, target, who, execution, after, as_lines)


async def _history(target: GatewayTarget, who: Identity, given: str, after: int, as_lines: bool) -> None:
    async with open_workflows(target, who, endless=True) as client:
        execution_id = await execution_id_of(client, given)
        while page := await client.workflow.history(execution_id, after=after):
            print_history(page, as_lines=as_lines, numbers=True)
            after = page[-1].number
