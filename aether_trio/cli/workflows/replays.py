"""Replays histories on files, and moves executions to new versions, for the shell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from aether_trio.cli import exits
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.records import plain
from aether_trio.cli.workflows.connection import execution_id_of, open_workflows
from aether_trio.cli.workflows.files import decoded_files, files_of
from aether_trio.cli.workflows.texts import json_line
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.operations.workflow_values import AppliedDefinition, Execution, HistoryReplay
from aether_trio.model.identity import Identity

_SHOWN: Final = 600


def replay_on_file(target: GatewayTarget, who: Identity, given: str, path: str, as_object: bool) -> None:
    """Replay an execution on a file's workflow, and print where they part.

    Raises CliError for a file that is wrong, and SystemExit(1) if they part.
    """
    from aether_trio.model.workflows.definition import Graph
    from aether_trio.services.workflows.documents.reader import read_files

    decoded, errors = decoded_files(files_of([path]))
    found = read_files(decoded)
    for error in (*errors, *found.errors):
        say(error, err=True)
    if errors or found.errors:
        raise exits.CliError("nothing was replayed")
    graphs = [(one, steps) for one, steps in zip(found.definitions, found.steps, strict=True) if isinstance(one, Graph)]
    documents = {one.id: {"kind": "workflow", **one.source} for one, _ in graphs}
    places = {one.id: steps for one, steps in graphs}
    execution, replayed = run_client(_replay, target, who, given, documents, path)
    divergence = replayed.divergence
    place = places.get(execution.workflow, {}).get(divergence.step, "") if divergence is not None else ""
    if as_object:
        print_json({**plain(replayed), "place": place}, indent=2)
    elif divergence is None:
        entries = "entry replays" if replayed.entries == 1 else "entries replay"
        say(f"{replayed.entries} {entries} on {path} without a difference")
    else:
        _print_divergence(replayed, place or path)
    if divergence is not None:
        raise SystemExit(exits.FAILED)


async def _replay(
    target: GatewayTarget, who: Identity, given: str, documents: dict[str, dict[str, Any]], path: str
) -> tuple[Execution, HistoryReplay]:
    async with open_workflows(target, who, endless=True) as client:
        execution = await client.workflow.execution(await execution_id_of(client, given))
        document = documents.get(execution.workflow)
        if document is None:
            names = ", ".join(sorted(documents)) or "no workflow"
            raise exits.CliError(
                f"execution {execution.execution_id} is one of workflow {execution.workflow}, and {path} has {names}"
            )
        return execution, await client.workflow.replay(execution.execution_id, document)


def _print_divergence(replayed: HistoryReplay, place: str) -> None:
    divergence = replayed.divergence
    assert divergence is not None
    step = f"step {divergence.step}: " if divergence.step else ""
    say(f"{place}: {step}entry {divergence.number} ({divergence.happening.get('type', '')}) parts from the history")
    say(f"  recorded: {_command(divergence.recorded)}")
    say(f"  now:      {_command(divergence.now)}")
    before = divergence.number - 1
    say(f"{before} {'entry' if before == 1 else 'entries'} before it replay{'s' if before == 1 else ''}")


def _command(command: Any) -> str:
    if not command:
        return "nothing"
    rest = {key: value for key, value in command.items() if key != "type"}
    return f"{command.get('type', '')} {json_line(rest, _SHOWN)}"


async def migrate_live(
    target: GatewayTarget, who: Identity, workspace: str, applied: Iterable[AppliedDefinition]
) -> tuple[list[str], list[str]]:
    """Move the executions of each applied workflow that have not ended.

    Returns a line for each that has moved, and one for each that stays, with the reason.
    """
    moved: list[str] = []
    stay: list[str] = []
    async with open_workflows(target, who, endless=True) as client:
        for one in applied:
            if one.kind != "workflow":
                continue
            where = workspace if one.workspace == "*" else one.workspace
            async for execution in _live(client.workflow, where, one.id):
                if execution.version == one.version:
                    continue
                replayed = await client.workflow.migrate(execution.execution_id)
                name = f"execution {execution.execution_id} of {one.id}"
                if replayed.divergence is None:
                    moved.append(f"{name} goes on with version {replayed.version}")
                else:
                    part = replayed.divergence
                    about = f", step {part.step}" if part.step else ""
                    stay.append(
                        f"{name} stays on version {execution.version}: its history parts from version "
                        f"{replayed.version} at entry {part.number}{about}"
                    )
    return moved, stay


async def _live(workflow: Workflow, workspace: str, name: str) -> AsyncIterator[Execution]:
    """Yield the executions of a workflow that have not ended, the newest first."""
    after = ""
    while True:
        page = await workflow.executions(workspace, workflow=name, status="running", after=after)
        for execution in page:
            yield execution
        if not page:
            return
        after = page[-1].execution_id
