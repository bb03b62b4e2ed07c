"""Acts again on dead letters of workflows."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import is_terminal, print_json, run_client, say
from aether_trio.cli.workflows.connection import open_workflows
from aether_trio.client.operations.workflow_values import Redriven
from aether_trio.model.identity import Identity

_SHOWN: Final = 20
"""Letters that are dead again, of which the reason is shown."""


@click.command()
@click.option("--rule", default="", metavar="NAME", help="Those of this rule.")
@click.option("--workflow", default="", metavar="NAME", help="Those of events that should have begun this workflow.")
@click.option("--machine", default="", metavar="NAME", help="Those of this state machine.")
@click.option("--join", default="", metavar="NAME", help="Those of actions of this join.")
@click.option("--all", "everything", is_flag=True, help="All of the workspace.")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="Only those since this moment, local time."
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object with `acted` and `refused`.")
@workspace_option
@access_options
def redrive(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    rule: str,
    workflow: str,
    machine: str,
    join: str,
    everything: bool,
    since: datetime | None,
    as_object: bool,
) -> None:
    """Act again on dead letters of rules, workflows, machines and joins.

    Each acts once: also when the command is interrupted and begun again. `aether dlq list` shows
    them, `aether dlq requeue` acts on a single one. The exit code is 1 if one is dead again.
    """
    names = {"rule": rule, "workflow": workflow, "machine": machine, "join": join}
    asked = {kind: name for kind, name in names.items() if name}
    if len(asked) + everything != 1:
        raise click.UsageError("Say which: --all, or one of --rule, --workflow, --machine, --join.")
    moment = None if since is None else since.astimezone()
    acted, refused = run_client(_redrive, target, who, workspace, asked, moment)
    if as_object:
        listed = [{"task_id": task_id, "reason": reason} for task_id, reason in refused]
        print_json({"acted": acted, "refused": listed}, indent=2)
    else:
        if not acted and not refused:
            about = " ".join(f"of the {kind} {name} " for kind, name in asked.items())
            say(
                f"no dead letter {about}in the workspace {workspace}: `aether dlq list` shows those there are", err=True
            )
        else:
            say(f"{acted} dead letters have acted" if acted != 1 else "1 dead letter has acted")
        for task_id, reason in refused[:_SHOWN]:
            say(f"{task_id} is dead again: {reason}", err=True)
        if len(refused) > _SHOWN:
            say(f"{len(refused) - _SHOWN} more are dead again", err=True)
    if refused:
        raise SystemExit(exits.FAILED)


async def _redrive(
    target: GatewayTarget, who: Identity, workspace: str, asked: dict[str, str], since: datetime | None
) -> tuple[int, list[tuple[str, str]]]:
    acted = 0
    refused: list[tuple[str, str]] = []
    async with open_workflows(target, who, endless=True) as client:
        page: Redriven | None = None
        while page is None or page.more:
            page = await client.workflow.redrive(**asked, since=since, after=page, workspace=workspace)
            acted += page.acted
            refused += page.refused
            if page.more and is_terminal():
                say(f"{acted} have acted, {len(refused)} are dead again", err=True)
    return acted, refused
