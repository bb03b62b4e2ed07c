"""Connects the commands about workflows to the gateway, and finds executions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal, open_client, refusal_text
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.options import GatewayTarget
from aether_trio.client import AetherError
from aether_trio.client.client import Client
from aether_trio.model.identity import Identity

RUN_TYPE: Final = "workflow_run"
"""The type of the task that is an execution."""
_CANDIDATES: Final = 20
"""Executions that an ambiguous beginning of an id is looked up for."""
_NEXT: Final = (
    ("schedule '", "not found in workspace", "`aether workflows schedules list` shows those there are"),
    ("machine '", "not found in workspace", "`aether workflows list --kind machine` shows those there are"),
    ("webhook '", "not found in workspace", "`aether workflows list --kind webhook` shows those there are"),
    ("instance '", "not found in workspace", "`aether workflows instances list` shows those there are"),
    ("join '", "not found in workspace", "`aether workflows joins list --status all` shows those there are"),
    ("not found in workspace", "`aether workflows list` shows those of a workspace (--workspace)"),
    ("execution", "not found", "`aether workflows executions --all` shows those of a workspace (--workspace)"),
    ("would have to be undone", "leave --version out"),
    ("has no step", "`aether workflows show` lists its steps"),
    ("asks nothing now", "`aether workflows show` says which steps ask something"),
    ("the question is for", "--as says who answers"),
    ("the input of workflow", "`aether workflows show NAME` says what its input is"),
    ("choice is one of", "give one of them with --choice"),
    ("not as the form says", "give the data as JSON with --data"),
    ("has ended", "`aether workflows show` says how"),
    ("retry of a task", "only executions that have failed or were cancelled are retried"),
    ("exists with other content", "a version that was applied never changes"),
    ("unknown workflow operation", "this workflow engine is not the gateway's, and does not know it"),
)
"""What to do about a refusal (the last text), by parts of its text."""


@asynccontextmanager
async def open_workflows(target: GatewayTarget, who: Identity, *, endless: bool = False) -> AsyncIterator[Client]:
    """Connect for operations on workflows. Failures are CliErrors with a hint."""
    async with open_client(target, who, endless=endless) as client:
        with explained_workflow_refusals():
            yield client


@contextmanager
def explained_workflow_refusals() -> Iterator[None]:
    """Turn the refusal of an operation in the block into a CliError."""
    try:
        yield
    except AetherError as error:
        if not is_refusal(error):
            raise
        raise refused_workflow(refusal_text(error)) from error


def refused_workflow(text: str) -> exits.CliError:
    """Make the error for a refused operation on a workflow, with what to do about it."""
    hint = next((row[-1] for row in _NEXT if all(part in text for part in row[:-1])), "")
    several = "\n" in text
    return exits.CliError(f"{text}{chr(10) if several else '; '}{hint}" if hint else text, lines=several)


async def execution_id_of(client: Client, given: str) -> str:
    """Return the id of the execution whose id begins with `given`. Raises CliError."""
    return await full_id(given, "execution", _beginning_with(client, given))


async def _beginning_with(client: Client, given: str) -> AsyncIterator[Sequence[Listed]]:
    page = await client.tasks.query(id_prefix=given, task_type=RUN_TYPE, limit=_CANDIDATES)
    yield [(task.task_id, f"{task.metadata.get('workflow_id', '')} {task.status.name.lower()}") for task in page.tasks]
