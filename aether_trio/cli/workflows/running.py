"""Starts executions, waits for their end, and lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.identities import access_options, asking_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import is_terminal, print_json, run_client, say, say_json
from aether_trio.cli.records import plain
from aether_trio.cli.task_end import wait_limit
from aether_trio.cli.workflows.arguments import json_argument
from aether_trio.cli.workflows.connection import (
    execution_id_of,
    explained_workflow_refusals,
    open_workflows,
)
from aether_trio.cli.workflows.texts import (
    input_properties,
    print_executions,
)
from aether_trio.client.operations.workflow_values import Execution, WorkflowDefinition
from aether_trio.model.identity import Identity, Kind

STATUSES: Final = ("live", "queued", "running", "paused", "compensating", "completed", "failed", "cancelled", "all")
_LIVE: Final = ("queued", "running", "paused", "compensating")
_PART: Final = 1_000
"""Executions that are read at once."""
_AGAIN_S: Final = 1.0
"""Before the next connection."""

run_options: Final = asking_options(Kind.USER, "Who runs it.  [default: a window of the user admin, an administrator]")


@click.command(
    epilog="""
\b
Examples:
  aether workflows run report topic=rust depth=3
  aether workflows run report --input '{"topic": "rust"}' --wait
  aether workflows run report --input @order.json
  aether workflows run report --input - < order.json
"""
)
@click.argument("name", metavar="WORKFLOW")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--input", "given", metavar="JSON|@FILE|-", help="The input as JSON; KEY=VALUE is added to it.")
@click.option(
    "--idempotency-key",
    "key",
    default="",
    metavar="KEY",
    help="Start it once: the same key finds the same execution for a day.",
)
@click.option("--wait", "waits", is_flag=True, help="Wait for its end, and print its result.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object; with --wait the whole execution.")
@workspace_option
@run_options
def run(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    name: str,
    fields: tuple[str, ...],
    given: str | None,
    key: str,
    waits: bool,
    as_object: bool,
) -> None:
    """Start an execution of a workflow's newest version, and print its id.

    The value of KEY=VALUE is a text where the workflow declares one, else JSON if it is that. With
    --wait the result is printed as JSON, however long it takes without --timeout; the exit code is
    1 for an execution that does not end well, and 124 if it has not ended within --timeout.
    """
    start = input_of(given)
    pairs = [pair_of(one) for one in fields]
    if pairs and not isinstance(start, dict | None):
        raise click.UsageError("KEY=VALUE is added to a JSON object, and --input is none.")
    execution_id = run_client(_run, target, who, workspace, name, start, pairs, key)
    if not waits:
        if as_object:
            print_json({"execution_id": execution_id})
        else:
            say(execution_id)
        return
    say(execution_id, err=True)
    show_end(run_client(wait_for_end, target, who, execution_id, wait_limit(target)), as_object)


def pair_of(text: str) -> tuple[str, str]:
    """Split KEY=VALUE. Raises click.UsageError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is not KEY=VALUE; --input takes JSON.")
    return name, value


def input_of(given: str | None) -> Any:
    """Return the value of --input; None without one. Raises click.BadParameter."""
    if given is None:
        return None
    return json_argument(given, "--input")


async def _run(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    name: str,
    start: Any,
    pairs: Sequence[tuple[str, str]],
    key: str,
) -> str:
    async with open_workflows(target, who) as client:
        given = start
        if pairs:
            given = with_fields(start or {}, pairs, await client.workflow.definition(name, workspace=workspace))
        return await client.workflow.run(name, given, workspace=workspace, idempotency_key=key)


def with_fields(
    start: Mapping[str, Any], pairs: Sequence[tuple[str, str]], definition: WorkflowDefinition
) -> dict[str, Any]:
    """Return an input with the values of KEY=VALUE. Raises click.UsageError."""
    properties, _ = input_properties(definition.document)
    for field, _ in pairs:
        if properties and field not in properties:
            raise click.UsageError(
                f"workflow {definition.id} declares no input {field!r}, but: {', '.join(properties)}; "
                "--input takes any JSON."
            )
    return {**start, **{field: typed_value(text, properties.get(field)) for field, text in pairs}}


def typed_value(text: str, schema: Any) -> Any:
    """Return the value of KEY=VALUE: a declared text, else JSON if it is that."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


async def wait_for_end(target: GatewayTarget, who: Identity, execution_id: str, limit_s: float) -> Execution:
    """Wait for the end of an execution. A lost connection is made again."""
    said = ""
    with trio.move_on_after(limit_s):
        while True:
            try:
                async with open_workflows(target, who, endless=True) as client:
                    with explained_workflow_refusals():
                        return await client.workflow.within(None).wait(execution_id)
            except exits.CliError as error:
                if error.exit_code != exits.UNREACHABLE:
                    raise
                if error.message != said:
                    said = error.message
                    say(f"{said}; trying again", err=True)
                await trio.sleep(_AGAIN_S)
    raise exits.CliError(f"execution {execution_id} has not ended within {limit_s:g} s; it goes on", exits.NOT_YET)


def show_end(execution: Execution, as_object: bool) -> None:
    """Print the result of an execution that has ended; raise CliError for a bad end."""
    if as_object:
        print_json(plain(execution), indent=2)
        if execution.status != "completed":
            raise SystemExit(exits.FAILED)
    elif execution.status == "completed":
        say_json(json.dumps(execution.result, ensure_ascii=False))
    else:
        reason = f": {execution.error}" if execution.error else ""
        was = "has failed" if execution.status == "failed" else f"was {execution.status}"
        raise exits.CliError(
            f"execution {execution.execution_id} {was}{reason}; `aether workflows show` says more, "
            "`aether workflows retry` goes on with it"
        )


@click.command()
@click.argument("execution")
@click.option("--json", "as_object", is_flag=True, help="The whole execution as a JSON object.")
@access_options
def wait(target: GatewayTarget, who: Identity, execution: str, as_object: bool) -> None:
    """Wait until an execution has ended, and print its result as JSON.

    \b
    Exit codes:
      0    the execution is completed
      1    it has failed or was cancelled; the reason is on standard error
      124  it has not ended within --timeout; without that it waits for as long as it takes
    """
    execution_id = run_client(_find, target, who, execution)
    show_end(run_client(wait_for_end, target, who, execution_id, wait_limit(target)), as_object)


async def _find(target: GatewayTarget, who: Identity, given: str) -> str:
    async with open_workflows(target, who) as client:
        return await execution_id_of(client, given)


@click.command()
@click.option(
    "--status",
    type=click.Choice(STATUSES),
    default="live",
    show_default=True,
    help="`live` are all that have not ended.",
)
@click.option("--all", "everything", is_flag=True, help="The same as --status all.")
@click.option("--workflow", default="", metavar="NAME", help="Only of this workflow.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--after", default="", metavar="EXECUTION", help="Those that began before this one; its whole id.")
@click.option("--json", "as_array", is_flag=True, help="A JSON array.")
@workspace_option
@access_options
def executions(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    status: str,
    everything: bool,
    workflow: str,
    limit: int,
    after: str,
    as_array: bool,
) -> None:
    """Show executions of a workspace, the newest first."""
    wanted = "all" if everything else status
    found = run_client(_executions, target, who, workspace, workflow, wanted, limit + 1, after)
    more = len(found) > limit
    found = found[:limit]
    if more and is_terminal():
        say(
            f"there are more than these {limit}: see --limit, --status and --workflow, or --after "
            f"{found[-1].execution_id}",
            err=True,
        )
    if as_array:
        print_json(plain(found), indent=2)
        return
    which = {"live": "no execution that has not ended", "all": "no execution"}.get(wanted, f"no {wanted} execution")
    hint = "; --all shows those that have ended" if wanted == "live" else ""
    print_executions(found, f"{which} in the workspace {workspace}{hint}")


async def _executions(
    target: GatewayTarget, who: Identity, workspace: str, workflow: str, status: str, limit: int, after: str
) -> list[Execution]:
    """Read so many executions; "running" is a part of what the gateway calls so."""
    asked = "running" if status in ("live", "running") else status
    found: list[Execution] = []
    async with open_workflows(target, who) as client:
        while len(found) < limit:
            part = min(limit - len(found), _PART)
            page = await client.workflow.executions(workspace, workflow=workflow, status=asked, limit=part, after=after)
            found += [one for one in page if status != "running" or one.status == "running"]
            if len(page) < part:
                break
            after = page[-1].execution_id
    return found
