"""`aether workflows joins`: shows what joins have gathered, and cancels them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, print_table, run_client, say
from aether_trio.cli.workflows.connection import open_workflows
from aether_trio.cli.workflows.kinds import Found, moment_text, object_of, print_found
from aether_trio.cli.workflows.pages import limit_option, read_pages, say_more
from aether_trio.model.identity import Identity

STATUSES: Final = ("open", "fired", "timed_out", "cancelled", "all")


@click.group(
    epilog="""
\b
Examples:
  aether workflows joins list
  aether workflows joins list --status all
  aether workflows joins show ingest job-7
  aether workflows joins cancel ingest job-7
"""
)
def joins() -> None:
    """Show what joins of events have gathered, and cancel them.

    A join is known by its name and the value of its correlation key. Rules lead to joins: `aether
    workflows list --kind rule`.
    """


@joins.command("list")
@click.option("--status", type=click.Choice(STATUSES), default="open", show_default=True, help="Only those.")
@limit_option
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_joins(target: GatewayTarget, who: Identity, workspace: str, status: str, limit: int, as_array: bool) -> None:
    """Show joins of a workspace, the latest changed first."""
    found, more = run_client(_list, target, who, workspace, "" if status == "all" else status, limit)
    say_more(more, limit)
    if as_array:
        print_json(found, indent=2)
        return
    rows = [
        (
            str(one.get("join_name", "")),
            str(one.get("correlation_key", "")),
            str(one.get("mode", "")),
            f"{one.get('arrived', 0)} of {'?' if one.get('expected') is None else one['expected']}",
            str(one.get("status", "")),
            moment_text(one.get("updated_at")),
            moment_text(one.get("deadline_at")),
        )
        for one in found
    ]
    columns = ("join", "key", "mode", "arrived", "status", "changed", "deadline")
    print_table(columns, rows, f"no {'' if status == 'all' else f'{status} '}join in the workspace {workspace}")


async def _list(
    target: GatewayTarget, who: Identity, workspace: str, status: str, limit: int
) -> tuple[list[Found], bool]:
    async with open_workflows(target, who) as client:
        workflow = client.workflow
        return await read_pages(
            lambda size, after: workflow.list_joins(workspace, status=status, limit=size, after=after), limit
        )


@joins.command()
@click.argument("join")
@click.argument("key")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@workspace_option
@access_options
def show(target: GatewayTarget, who: Identity, workspace: str, join: str, key: str, as_object: bool) -> None:
    """Show a join: how much has come of what it expects, and until when it waits."""
    print_found(run_client(_show, target, who, workspace, join, key), as_object)


async def _show(target: GatewayTarget, who: Identity, workspace: str, join: str, key: str) -> Mapping[str, Any]:
    async with open_workflows(target, who) as client:
        return object_of(await client.workflow.get_join(join, key, workspace=workspace))


@joins.command()
@click.argument("join")
@click.argument("key")
@workspace_option
@access_options
def cancel(target: GatewayTarget, who: Identity, workspace: str, join: str, key: str) -> None:
    """Cancel a join: it does nothing any more, whatever else comes."""
    say(run_client(_cancel, target, who, workspace, join, key))


async def _cancel(target: GatewayTarget, who: Identity, workspace: str, join: str, key: str) -> str:
    async with open_workflows(target, who) as client:
        return (await client.workflow.cancel_join(join, key, workspace=workspace)).message
