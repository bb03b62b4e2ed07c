"""`aether workflows instances`: shows instances of state machines, and moves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, print_table, run_client, say
from aether_trio.cli.workflows.arguments import json_argument
from aether_trio.cli.workflows.connection import open_workflows
from aether_trio.cli.workflows.kinds import Found, moment_text, object_of, print_found
from aether_trio.cli.workflows.pages import limit_option, read_pages, say_more
from aether_trio.cli.workflows.texts import json_line
from aether_trio.model.identity import Identity


@click.group(
    epilog="""
\b
Examples:
  aether workflows instances list order
  aether workflows instances show o1
  aether workflows instances create order o2 --data '{"sum": 5}'
  aether workflows instances send o2 pay --data '{"amount": 5}'
"""
)
def instances() -> None:
    """Show instances of state machines, create them and send them events.

    Machines are applied by files: `aether workflows apply`. INSTANCE is an id, or MACHINE/ID if
    several machines have one of that id.
    """


@instances.command("list")
@click.argument("machine", default="", metavar="[MACHINE]")
@limit_option
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def list_instances(
    target: GatewayTarget, who: Identity, workspace: str, machine: str, limit: int, as_array: bool
) -> None:
    """Show the instances of a machine, or of all, the latest changed first."""
    found, more = run_client(_list, target, who, workspace, machine, limit)
    say_more(more, limit)
    if as_array:
        print_json(found, indent=2)
        return
    rows = [
        (
            str(one.get("instance_id", "")),
            str(one.get("machine_id", "")),
            str(one.get("current_state", "")) + (" (ended)" if one.get("completed_at") else ""),
            moment_text(one.get("updated_at")),
            moment_text(one.get("timeout_at")),
            json_line(one.get("data")),
        )
        for one in found
    ]
    which = f"no instance of {machine}" if machine else "no instance of a state machine"
    columns = ("instance", "machine", "state", "changed", "timeout", "data")
    print_table(columns, rows, f"{which} in the workspace {workspace}")


async def _list(
    target: GatewayTarget, who: Identity, workspace: str, machine: str, limit: int
) -> tuple[list[Found], bool]:
    async with open_workflows(target, who) as client:
        workflow = client.workflow
        return await read_pages(
            lambda size, after: workflow.list_instances(machine, workspace=workspace, limit=size, after=after), limit
        )


@instances.command()
@click.argument("instance")
@click.option("--json", "as_object", is_flag=True, help="A JSON object.")
@workspace_option
@access_options
def show(target: GatewayTarget, who: Identity, workspace: str, instance: str, as_object: bool) -> None:
    """Show an instance: its state, its data, and when it times out."""
    print_found(run_client(_show, target, who, workspace, instance), as_object)


async def _show(target: GatewayTarget, who: Identity, workspace: str, instance: str) -> Mapping[str, Any]:
    async with open_workflows(target, who) as client:
        return object_of(await client.workflow.get_instance(instance, workspace=workspace))


@instances.command()
@click.argument("machine")
@click.argument("instance")
@click.option("--data", metavar="JSON|@FILE|-", help="The data of the instance.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object: the instance.")
@workspace_option
@access_options
def create(
    target: GatewayTarget, who: Identity, workspace: str, machine: str, instance: str, data: str | None, as_object: bool
) -> None:
    """Create an instance of a machine, in its initial state."""
    given: dict[str, Any] = {"instance_id": instance}
    if data is not None:
        given["data"] = json_argument(data, "--data")
    found = run_client(_create, target, who, workspace, machine, given)
    if as_object:
        print_json(found, indent=2)
    else:
        say(_is_in(found))


async def _create(
    target: GatewayTarget, who: Identity, workspace: str, machine: str, given: Mapping[str, Any]
) -> Mapping[str, Any]:
    async with open_workflows(target, who) as client:
        encoded = json.dumps(given).encode()
        return object_of(await client.workflow.create_instance(machine, encoded, workspace=workspace))


def _is_in(found: Mapping[str, Any]) -> str:
    name, state = str(found.get("instance_id", "")), str(found.get("current_state", ""))
    return f"instance {name} is in state {state}" + (", and has ended" if found.get("completed_at") else "")


@instances.command()
@click.argument("instance")
@click.argument("event")
@click.option("--data", metavar="JSON|@FILE|-", help="The data of the event, which guards and actions read.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object: the instance.")
@workspace_option
@access_options
def send(
    target: GatewayTarget, who: Identity, workspace: str, instance: str, event: str, data: str | None, as_object: bool
) -> None:
    """Send an event to an instance, and show the state to which that leads."""
    value = None if data is None else json_argument(data, "--data")
    found = run_client(_send, target, who, workspace, instance, event, value)
    if as_object:
        print_json(found, indent=2)
    else:
        say(_is_in(found))


async def _send(
    target: GatewayTarget, who: Identity, workspace: str, instance: str, event: str, data: Any
) -> Mapping[str, Any]:
    async with open_workflows(target, who) as client:
        workflow = client.workflow
        encoded = json.dumps({"event": event, "data": data}).encode()
        return object_of(await workflow.send_event(instance, event, encoded, workspace=workspace))
