"""`aether workflows fork`: does a part of an execution once more, in a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.records import plain
from aether_trio.cli.task_end import wait_limit
from aether_trio.cli.workflows.arguments import json_argument
from aether_trio.cli.workflows.connection import execution_id_of, open_workflows
from aether_trio.cli.workflows.running import pair_of, run_options, show_end, wait_for_end, with_fields
from aether_trio.client.operations.workflow import SAME_INPUT
from aether_trio.client.operations.workflow_values import ExecutionFork
from aether_trio.model.identity import Identity


@click.command(
    epilog="""
\b
Examples:
  aether workflows fork EXECUTION --from write
  aether workflows fork EXECUTION --from write topic=trio --wait
  aether workflows fork EXECUTION --from write --version newest
"""
)
@click.argument("execution")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--from", "step", required=True, metavar="STEP", help="This step, and all that follows from it, is done again."
)
@click.option("--input", "given", metavar="JSON|@FILE|-", help="Another input; KEY=VALUE changes one field of it.")
@click.option(
    "--version",
    type=click.Choice(["same", "newest"]),
    default="same",
    show_default=True,
    help="On which version of the workflow the new execution runs.",
)
@click.option("--wait", "waits", is_flag=True, help="Wait for its end, and print its result.")
@click.option("--json", "as_object", is_flag=True, help="A JSON object; with --wait the whole execution.")
@run_options
def fork(
    target: GatewayTarget,
    who: Identity,
    execution: str,
    fields: tuple[str, ...],
    step: str,
    given: str | None,
    version: str,
    waits: bool,
    as_object: bool,
) -> None:
    """Begin an execution with what another one has done, but for STEP and the rest.

    What else has ended keeps its results, and is undone if the new execution fails. Nothing of the
    other one changes, whether it has ended or not; `show` links both.
    """
    start = SAME_INPUT if given is None else json_argument(given, "--input")
    pairs = [pair_of(one) for one in fields]
    made = run_client(_fork, target, who, execution, step, start, pairs, version == "newest")
    if made.undone_by_both:
        say(
            f"warning: the other execution goes on, and each of both undoes {', '.join(made.undone_by_both)} if it "
            "fails; cancel one of them in time",
            err=True,
        )
    if not waits:
        if as_object:
            print_json(plain(made), indent=2)
        else:
            say(made.execution_id)
        return
    say(made.execution_id, err=True)
    show_end(run_client(wait_for_end, target, who, made.execution_id, wait_limit(target)), as_object)


async def _fork(
    target: GatewayTarget,
    who: Identity,
    execution: str,
    step: str,
    start: Any,
    pairs: Sequence[tuple[str, str]],
    newest: bool,
) -> ExecutionFork:
    async with open_workflows(target, who) as client:
        execution_id = await execution_id_of(client, execution)
        if pairs:
            found = await client.workflow.execution(execution_id)
            before = found.input if start is SAME_INPUT else start
            if not isinstance(before, dict):
                raise click.UsageError("KEY=VALUE changes a JSON object, and the input is none.")
            definition = await client.workflow.definition(found.workflow, workspace=found.workspace)
            start = with_fields(before, pairs, definition)
        return await client.workflow.fork(execution_id, step, input=start, newest=newest)
