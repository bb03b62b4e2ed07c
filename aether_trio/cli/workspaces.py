"""`aether workspaces`: list, describe, create, change and delete workspaces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, name_and_value
from aether_trio.cli.output import print_facts, print_json, print_table, run_client, say
from aether_trio.cli.records import plain
from aether_trio.cli.workspace_calls import QUOTA_PREFIX, Op, ask, list_all
from aether_trio.client.operations.records import read
from aether_trio.client.operations.workspaces import MessageFlow, Workspace
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    name="workspaces",
    epilog="""
\b
Examples:
  aether workspaces list
  aether workspaces create lab --display-name "The lab" --metadata team=blue
  aether workspaces show lab
  aether workspaces flow lab
  aether workspaces update lab --description "where we try things"
  aether workspaces delete lab
""",
)
def command() -> None:
    """List, describe, create, change and delete workspaces.

    A workspace in which participants are connected is listed, also when it was not created. To set
    limits for a workspace, see `aether quotas`.
    """


def description_options(function: F) -> F:
    """Add the options that describe a workspace, which the command gets as `info`."""

    @click.argument("workspace")
    @click.option("--display-name", default="", metavar="TEXT", help="Its name for people.")
    @click.option("--description", default="", metavar="TEXT", help="What it is for.")
    @click.option("--tenant", default="", metavar="ID", help="The tenant that it belongs to.")
    @click.option("--metadata", "entries", multiple=True, metavar="NAME=VALUE", help="A note; may be repeated.")
    @access_options
    @functools.wraps(function)
    def wrapper(
        workspace: str, display_name: str, description: str, tenant: str, entries: tuple[str, ...], **kwargs: Any
    ) -> Any:
        metadata = dict(name_and_value(one, "--metadata") for one in entries)
        if any(name.startswith(QUOTA_PREFIX) for name in metadata):
            raise click.UsageError("--metadata sets no quotas: use `aether quotas set`.")
        info = pb.WorkspaceInfo(
            workspace_id=workspace,
            display_name=display_name,
            description=description,
            tenant_id=tenant,
            metadata=metadata,
        )
        return function(info=info, **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


@command.command("list")
@click.option("--tenant", default="", metavar="ID", help="Only those of this tenant.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@access_options
def list_workspaces(target: GatewayTarget, who: Identity, tenant: str, as_json: bool) -> None:
    """Show workspaces, and how many participants are connected in each."""

    async def listed() -> list[pb.WorkspaceInfo]:
        async with open_client(target, who) as client:
            return await list_all(client, tenant)

    rows = run_client(listed)
    if as_json:
        print_json([plain(read(Workspace, row)) for row in rows], indent=2)
        return
    print_table(
        ("workspace", "name", "tenant", "agents", "tasks", "users", "messages"),
        [(row.workspace_id, row.display_name, row.tenant_id, *_counters(row)) for row in rows],
        "there are no workspaces",
        whole=("workspace", "tenant"),
    )


@command.command()
@click.argument("workspace")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@access_options
def show(target: GatewayTarget, who: Identity, workspace: str, as_json: bool) -> None:
    """Show one workspace, with its metadata and quotas."""
    info = run_client(ask, target, who, Op(op=Op.GET, workspace_id=workspace)).workspace
    if as_json:
        print_json(plain(read(Workspace, info)), indent=2)
        return
    agents, tasks, users, messages = _counters(info)
    facts = [
        ("workspace", info.workspace_id),
        ("name", info.display_name),
        ("description", info.description),
        ("tenant", info.tenant_id),
        ("created", _moment(info.created_at)),
        ("changed", _moment(info.updated_at)),
        ("connected", f"{agents} agents, {tasks} tasks, {users} users"),
        ("messages", f"{messages} by the node that answers, since it started"),
        *sorted(info.metadata.items()),
    ]
    print_facts([(name, value) for name, value in facts if value])


@command.command()
@click.argument("workspace")
@click.option("--json", "as_json", is_flag=True, help="A JSON object with nodes and edges.")
@access_options
def flow(target: GatewayTarget, who: Identity, workspace: str, as_json: bool) -> None:
    """Show who sends to which in a workspace, most messages first.

    The messages are those that one node of the gateway has accepted since it started.
    """
    found = run_client(ask, target, who, Op(op=Op.GET_MESSAGE_FLOW, workspace_id=workspace)).message_flow
    if as_json:
        print_json(plain(read(MessageFlow, found)), indent=2)
        return
    print_table(
        ("from", "to", "messages"),
        [(getattr(edge, "from"), edge.to, str(edge.count)) for edge in found.edges],
        "no message has been sent",
        whole=("from", "to"),
    )


@command.command()
@description_options
def create(target: GatewayTarget, who: Identity, info: pb.WorkspaceInfo) -> None:
    """Create a workspace."""
    say(run_client(ask, target, who, Op(op=Op.CREATE, workspace=info)).message)


@command.command()
@description_options
def update(target: GatewayTarget, who: Identity, info: pb.WorkspaceInfo) -> None:
    """Change what describes a workspace; what is not named stays.

    --metadata replaces all metadata, but no quotas.
    """
    if not (info.display_name or info.description or info.tenant_id or info.metadata):
        raise click.UsageError("name what to change: --display-name, --description, --tenant or --metadata.")
    say(run_client(ask, target, who, Op(op=Op.UPDATE, workspace_id=info.workspace_id, workspace=info)).message)


@command.command()
@click.argument("workspace")
@access_options
def delete(target: GatewayTarget, who: Identity, workspace: str) -> None:
    """Delete a workspace in which no participant is connected.

    The access rules about it and its quotas are deleted with it. Keys, tasks and messages in it
    stay until they expire.
    """
    say(run_client(ask, target, who, Op(op=Op.DELETE, workspace_id=workspace)).message)


def _counters(row: pb.WorkspaceInfo) -> Sequence[str]:
    return [str(one) for one in (row.active_agents, row.active_tasks, row.active_users, row.total_messages)]


def _moment(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if unix_s else ""
