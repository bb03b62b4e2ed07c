"""Connects the commands about tasks to the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aether_trio.cli.connect import open_client
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.task_refusals import explained_refusals
from aether_trio.client.operations.tasks import Tasks
from aether_trio.model.identity import Identity

_CANDIDATES = 20
"""Tasks that an ambiguous beginning of an id is looked up for."""


@asynccontextmanager
async def open_tasks(target: GatewayTarget, who: Identity) -> AsyncIterator[Tasks]:
    """Connect, and yield the client's operations on tasks. Failures are CliErrors."""
    async with open_client(target, who) as client:
        with explained_refusals():
            yield client.tasks.within(None)


async def task_id_of(tasks: Tasks, given: str) -> str:
    """Return the id of the task whose id begins with `given`. Raises CliError."""
    return await full_id(given, "task", _beginning_with(tasks, given))


async def _beginning_with(tasks: Tasks, given: str) -> AsyncIterator[Sequence[Listed]]:
    page = await tasks.query(id_prefix=given, limit=_CANDIDATES)
    yield [(task.task_id, f"{task.task_type} {task.status.name.lower()}") for task in page.tasks]
