"""Asks the gateway about workspaces, for the commands `workspaces` and `quotas`."""

from __future__ import annotations

from typing import Final

from aether_trio.cli.connect import open_client
from aether_trio.cli.options import GatewayTarget
from aether_trio.client import Client
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkspaceOperation

PAGE: Final = 500
QUOTA_PREFIX: Final = "quota."
"""Metadata of a workspace with this prefix are its quotas."""
EVERY: Final = "*"
"""Stands for the workspaces without quotas."""


async def ask(target: GatewayTarget, who: Identity, op: pb.WorkspaceOperation) -> pb.WorkspaceResponse:
    """Connect and perform one operation. Raises CliError."""
    async with open_client(target, who) as client:
        return await answer_of(client, op)


async def answer_of(client: Client, op: pb.WorkspaceOperation) -> pb.WorkspaceResponse:
    """Perform one operation; return its answer."""
    answer: pb.WorkspaceResponse = await client.request(pb.UpstreamMessage(workspace_op=op), timeout=None)
    return answer


async def list_all(client: Client, tenant_id: str = "") -> list[pb.WorkspaceInfo]:
    """Return all workspaces, or those of a tenant."""
    found: list[pb.WorkspaceInfo] = []
    while True:
        wanted = pb.WorkspaceFilter(tenant_id=tenant_id, limit=PAGE, offset=len(found))
        page = await answer_of(client, Op(op=Op.LIST, filter=wanted))
        found += page.workspaces
        if not page.workspaces or len(found) >= page.total_count:
            return found
