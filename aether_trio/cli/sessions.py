"""`aether sessions`: lists and ends sessions of participants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import click

from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, print_table, run_client, say
from aether_trio.cli.paging import in_pages
from aether_trio.cli.records import plain
from aether_trio.client import Client
from aether_trio.client.operations.records import read
from aether_trio.client.operations.sessions import SessionInfo
from aether_trio.model.identity import Identity, PrincipalType
from aether_trio.wire.pb import aether_pb2 as pb


@click.command(
    name="sessions",
    epilog="""
\b
Examples:
  aether sessions
  aether sessions --type agent --workspace default
  aether sessions --json | jq -r .[].identity
  aether sessions --disconnect SESSION_ID
""",
)
@click.option("--type", "kind", type=click.Choice([one.type_name for one in PrincipalType]), help="Only this kind.")
@click.option("--workspace", default="", help="Only this workspace.")
@click.option(
    "--disconnect", "session_id", metavar="SESSION_ID", help="End this session; its client does not reconnect."
)
@click.option(
    "--reason", default="disconnected by an operator", show_default=True, help="What --disconnect tells the client."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@access_options
def command(
    target: GatewayTarget,
    who: Identity,
    kind: str | None,
    workspace: str,
    session_id: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Show connected participants, without the command's own connection."""
    if session_id:
        ended = run_client(_disconnect, target, who, session_id, reason)
        say(f"disconnected {ended}")
        return
    wanted = pb.ConnectionFilter(workspace=workspace)
    if kind:
        wanted.type = pb.PrincipalType.Value(f"PRINCIPAL_{kind.upper()}")
    rows = [row for row in run_client(_list, target, who, wanted) if row.identity != str(who)]
    if as_json:
        print_json([plain(read(SessionInfo, row)) for row in rows], indent=2)
        return
    print_table(
        ("identity", "workspace", "type", "session", "since", "for", "address"),
        [_cells(row) for row in rows],
        "no participant is connected",
        whole=("identity", "session"),
    )


def _cells(row: pb.ConnectionInfo) -> tuple[str, ...]:
    since = datetime.fromtimestamp(_seconds(row.connected_at), UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (row.identity, row.workspace, _type(row), row.session_id, since, row.duration, row.remote_addr)


async def _list(target: GatewayTarget, identity: Identity, wanted: pb.ConnectionFilter) -> list[pb.ConnectionInfo]:
    rows: list[pb.ConnectionInfo] = []
    async with open_client(target, identity) as client:
        async for page in _pages(client, wanted):
            rows += page
    return rows


def _pages(client: Client, wanted: pb.ConnectionFilter) -> AsyncIterator[Sequence[pb.ConnectionInfo]]:
    async def read(limit: int, offset: int) -> Sequence[pb.ConnectionInfo]:
        wanted.limit, wanted.offset = limit, offset
        operation = pb.SessionOperation(op=pb.SessionOperation.LIST, filter=wanted)
        page: pb.SessionOperationResponse = await client.request(pb.UpstreamMessage(session_op=operation), timeout=None)
        return page.connections

    return in_pages(read)


async def _disconnect(target: GatewayTarget, identity: Identity, given: str, reason: str) -> str:
    async with open_client(target, identity) as client:

        async def listed() -> AsyncIterator[Sequence[Listed]]:
            async for page in _pages(client, pb.ConnectionFilter()):
                yield [(row.session_id, row.identity) for row in page if row.session_id]

        session_id = await full_id(given, "session", listed())
        await client.sessions.within(None).disconnect(session_id, reason=reason)
    return session_id


def _seconds(unix: int) -> float:
    """Convert a connection's time to Unix seconds; larger numbers are milliseconds."""
    return unix / 1000 if unix > 10**11 else float(unix)


def _type(row: pb.ConnectionInfo) -> str:
    try:
        return PrincipalType(row.type).type_name
    except ValueError:
        return str(row.type)
