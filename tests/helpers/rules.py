"""Access rules for participants of a real gateway, granted by an orchestrator.

On trio and on asyncio.
"""

from __future__ import annotations

from uuid import uuid4

from aether_trio.client import OrchestratorClient
from aether_trio.client.operations.principals import AccessLevel


async def grant(
    address: str, principal_type: str, principal_id: str, resource_type: str, resource_id: str, level: AccessLevel
) -> None:
    """Add a rule; it is in force on every node when this returns."""
    operator = OrchestratorClient(
        f"aether://{address}", implementation="rules", specifier=uuid4().hex, profiles=["rules"]
    )
    async with operator:
        await operator.rules.grant(principal_type, principal_id, resource_type, resource_id, level)


async def let_agents_manage(address: str, workspace: str) -> None:
    """Let all agents manage a workspace: act on tasks of others, issue task tokens."""
    await grant(address, "agent", "ag::*", "workspace", workspace, AccessLevel.MANAGE)
