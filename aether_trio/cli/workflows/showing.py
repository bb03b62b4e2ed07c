"""Lists, shows and deletes workflows, and what belongs to them; shows executions."""

from __future__ import annotations

from typing import Any, Final

import click

from aether_trio.cli.connect import is_refusal
from aether_trio.cli.identities import access_options
from aether_trio.cli.ids import is_whole
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.records import plain
from aether_trio.cli.workflows.connection import (
    execution_id_of,
    open_workflows,
    refused_workflow,
)
from aether_trio.cli.workflows.kinds import (
    KINDS,
    Found,
    delete_other,
    find_other,
    list_others,
    print_other,
    print_others,
)
from aether_trio.cli.workflows.texts import (
    print_definition,
    print_definitions,
    print_execution,
    print_step,
)
from aether_trio.client import AetherError
from aether_trio.client.operations.workflow_values import Execution, WorkflowDefinition
from aether_trio.model.identity import Identity

WORKFLOW: Final = "workflow"

kind_option: Final = click.option(
    "--kind",
    type=click.Choice([WORKFLOW, *KINDS]),
    default=WORKFLOW,
    show_default=True,
    help="What it is: rules, schedules and state machines are applied by files, too.",
)


@click.command("list")
@kind_option
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_workflows(target: GatewayTarget, who: Identity, workspace: str, kind: str, as_array: bool) -> None:
    """Show the workflows of a workspace, and those of all workspaces."""
    if kind != WORKFLOW:
        others = run_client(_list_others, target, who, kind, workspace)
        if as_array:
            print_json(others, indent=2)
        else:
            print_others(others, kind, workspace)
        return
    found = run_client(_list, target, who, workspace)
    if as_array:
        print_json(plain(found), indent=2)
    else:
        print_definitions(found, workspace)


async def _list_others(target: GatewayTarget, who: Identity, kind: str, workspace: str) -> list[Found]:
    async with open_workflows(target, who) as client:
        return await list_others(client.workflow, kind, workspace)


async def _list(target: GatewayTarget, who: Identity, workspace: str) -> tuple[WorkflowDefinition, ...]:
    async with open_workflows(target, who) as client:
        return await client.workflow.definitions(workspace)


@click.command()
@click.argument("name", metavar="WORKFLOW|EXECUTION")
@kind_option
@click.option(
    "--step", default="", metavar="STEP", help="Only this step of an execution, or an item such as 'fetch[3]'."
)
@click.option("--items", is_flag=True, help="With all items of its steps, up to 1,000.")
@click.option(
    "--timeline",
    is_flag=True,
    help="Its history, attempts, progress reports and conversations in one order; with --json a line for each.",
)
@click.option("--after", default="", metavar="POSITION", help="Where --timeline goes on, as it has said.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1_000, show_default=True, help="How many entries --timeline shows."
)
@click.option("--mermaid", is_flag=True, help="A Mermaid flowchart of its steps, with their states; also of a machine.")
@click.option(
    "--diagram", type=click.Choice(["mermaid", "json"]), default=None, help="The same, or its nodes and edges as JSON."
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@workspace_option
@access_options
def show(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    name: str,
    kind: str,
    step: str,
    items: bool,
    timeline: bool,
    after: str,
    limit: int,
    mermaid: bool,
    diagram: str | None,
    as_object: bool,
) -> None:
    """Show a workflow with its steps, or an execution and what it waits for."""
    how = "mermaid" if mermaid else diagram
    if timeline:
        from aether_trio.cli.workflows.timeline import print_timeline

        if how or step or items or kind != WORKFLOW:
            raise click.UsageError(
                "--timeline shows all of one execution, and goes with --json, --after and --limit only."
            )
        print_timeline(target, who, name, after, limit, as_lines=as_object)
        return
    if how and (kind not in (WORKFLOW, "machine") or step or as_object):
        raise click.UsageError(
            "--mermaid and --diagram draw a whole workflow, execution or machine, and nothing else is printed."
        )
    if how:
        _draw(target, who, workspace, name, kind, how)
        return
    if kind != WORKFLOW:
        other = run_client(_show_other, target, who, kind, workspace, name)
        if as_object:
            print_json(other, indent=2)
        else:
            print_other(other)
        return
    found = run_client(_show, target, who, workspace, name, step)
    if as_object:
        print_json(plain(found), indent=2)
    elif isinstance(found, WorkflowDefinition):
        print_definition(found)
    elif step and len(found.steps) == 1:
        print_step(found, found.steps[0])
    else:
        print_execution(found, items=items or bool(step))


def _draw(target: GatewayTarget, who: Identity, workspace: str, name: str, kind: str, how: str) -> None:
    from aether_trio.model.workflows.mermaid import mermaid_of

    drawn = run_client(_diagram, target, who, workspace, name, kind)
    if how == "json":
        print_json(drawn, indent=2)
    else:
        say(mermaid_of(drawn), lines=True)


async def _diagram(target: GatewayTarget, who: Identity, workspace: str, name: str, kind: str) -> dict[str, Any]:
    async with open_workflows(target, who) as client:
        if kind != WORKFLOW:
            return dict(await client.workflow.diagram(name, kind=kind, workspace=workspace))
        if not is_whole(name):
            try:
                return dict(await client.workflow.diagram(name, workspace=workspace))
            except AetherError as error:
                if not is_refusal(error) or "not found" not in error.message:
                    raise
        return dict(await client.workflow.diagram(await execution_id_of(client, name), kind="execution"))


async def _show_other(target: GatewayTarget, who: Identity, kind: str, workspace: str, name: str) -> Found:
    async with open_workflows(target, who) as client:
        return await find_other(client.workflow, kind, name, workspace)


async def _show(
    target: GatewayTarget, who: Identity, workspace: str, name: str, step: str
) -> WorkflowDefinition | Execution:
    async with open_workflows(target, who) as client:
        if not step and not is_whole(name):
            try:
                return await client.workflow.definition(name, workspace=workspace)
            except AetherError as error:
                if not is_refusal(error) or "not found" not in error.message:
                    raise
        execution_id = await execution_id_of(client, name)
        try:
            return await client.workflow.execution(execution_id, step=step)
        except AetherError as error:
            if not is_refusal(error) or step or is_whole(execution_id):
                raise
            raise refused_workflow(
                f"there is neither a workflow nor an execution {name} in workspace {workspace}"
            ) from error


@click.command()
@click.argument("name", metavar="WORKFLOW")
@kind_option
@workspace_option
@access_options
def delete(target: GatewayTarget, who: Identity, workspace: str, name: str, kind: str) -> None:
    """Delete a workflow in all versions: nothing starts it any more.

    Executions that have begun go on. Applied again, it is there again.
    """
    run_client(_delete, target, who, workspace, name, kind)
    say(f"{kind} {name} is deleted" + ("; its executions go on" if kind == WORKFLOW else ""))


async def _delete(target: GatewayTarget, who: Identity, workspace: str, name: str, kind: str) -> None:
    async with open_workflows(target, who) as client:
        if kind == WORKFLOW:
            await client.workflow.delete_workflow(name, workspace=workspace)
        else:
            await delete_other(client.workflow, kind, name, workspace)
