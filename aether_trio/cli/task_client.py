"""Connects the commands about tasks to the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aether_trio.cli.connect import open_client
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.task_refusals import explained_refusals
from aether_trio.client.operations.tasks import Tasks
from aether_trio.model.identity import Identity


@asynccontextmanager
async def open_tasks(target: GatewayTarget, who: Identity) -> AsyncIterator[Tasks]:
    """Connect, and yield the client's operations on tasks. Failures are CliErrors."""
    async with open_client(target, who) as client:
        with explained_refusals():
            yield client.tasks.within(None)
