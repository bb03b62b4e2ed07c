"""`aether workflows`: applies definitions, and runs and steers executions."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal
from aether_trio.cli.identities import access_options, asking_options
from aether_trio.cli.ids import is_whole
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, run_client, say, say_json
from aether_trio.cli.records import plain
from aether_trio.cli.task_end import wait_limit
from aether_trio.cli.workflow_client import (
    execution_id_of,
    explained_workflow_refusals,
    open_workflows,
    refused_workflow,
)
from aether_trio.cli.workflow_files import files_of, read_workflow_files
from aether_trio.cli.workflow_kinds import (
    KINDS,
    Found,
    delete_other,
    find_other,
    list_others,
    print_other,
    print_others,
)
from aether_trio.cli.workflow_tests import test
from aether_trio.cli.workflow_texts import (
    applied_name,
    input_properties,
    print_definition,
    print_definitions,
    print_execution,
    print_executions,
    print_step,
)
from aether_trio.cli.workflow_watch import ExecutionWatch, print_history
from aether_trio.client import AetherError
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.operations.workflow_values import Applied, Execution, WorkflowDefinition
from aether_trio.model.identity import Identity, Kind

STATUSES: Final = ("live", "running", "paused", "compensating", "completed", "failed", "cancelled", "all")
_LIVE: Final = ("running", "paused", "compensating")
WORKFLOW: Final = "workflow"
_AGAIN_S: Final = 1.0
"""Before the next connection."""

Move: TypeAlias = Callable[[Workflow, str], Awaitable[None]]


@click.group(
    name="workflows",
    epilog="""
\b
Examples:
  aether workflows validate report.yaml
  aether workflows test report.yaml
  aether workflows apply report.yaml
  aether workflows run report topic=rust --wait
  aether workflows executions --status failed
  aether workflows show EXECUTION
  aether workflows watch EXECUTION
  aether workflows answer EXECUTION
  aether workflows signal EXECUTION go --data '{"by": "ann"}'
  aether workflows retry EXECUTION
""",
)
def command() -> None:
    """Apply workflows, run them, and steer their executions.

    A workflow says which steps follow which; docs/workflows.md shows how one is written. An
    execution is a task, so `aether tasks` shows it, too. EXECUTION is its id, or the beginning of
    it.
    """


command.add_command(test)
run_options: Final = asking_options(Kind.USER, "Who runs it.  [default: a window of the user admin, an administrator]")


# -- definitions -----------------------------------------------------------------------------------


@command.command(
    epilog="""
\b
Examples:
  aether workflows validate report.yaml
  aether workflows validate workflows/
  aether workflows validate - < report.yaml
"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE|DIR|-...")
@click.option("--json", "as_object", is_flag=True, help="A JSON object with documents, errors and warnings.")
def validate(paths: tuple[str, ...], as_object: bool) -> None:
    """Check files without a gateway: all errors at once, with their positions.

    Directories are searched for files that end with .yaml, .yml or .json. With an error the exit
    code is 1.
    """
    found = read_workflow_files(files_of(paths))
    if as_object:
        print_json({"documents": found.labels, "errors": found.errors, "warnings": found.warnings}, indent=2)
        if found.errors:
            raise SystemExit(exits.FAILED)
        return
    found.checked("nothing else was looked at")
    for label in found.labels:
        say(f"{label} is valid")


@command.command(
    epilog="""
\b
Examples:
  aether workflows apply report.yaml
  aether workflows apply workflows/ --workspace lab
  aether workflows apply report.yaml --dry-run
  generate | aether workflows apply -
"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE|DIR|-...")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option(
    "--migrate", is_flag=True, help="Move executions to the new versions, if their whole history replays on them."
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object with what was applied, and warnings.")
@workspace_option
@access_options
def apply(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    paths: tuple[str, ...],
    dry_run: bool,
    migrate: bool,
    as_object: bool,
) -> None:
    """Apply workflows, rules, schedules and machines of files: all or none.

    A document that names no workspace goes into --workspace. One whose content has not changed
    is no new version. Executions end on the version with which they began, unless --migrate moves
    them. What is applied acts for the participant that has applied it (--as), which must be
    allowed what it does.
    """
    if migrate and dry_run:
        raise click.UsageError("--migrate moves executions, and --dry-run changes nothing.")
    found = read_workflow_files(files_of(paths), workspace).checked("nothing was applied")
    applied = run_client(_apply, target, who, workspace, found.documents, dry_run)
    moved: list[str] = []
    stay: list[str] = []
    if migrate:
        from aether_trio.cli.workflow_past import migrate_live

        moved, stay = run_client(migrate_live, target, who, workspace, applied.applied)
    if as_object:
        print_json({**plain(applied), **({"moved": moved, "stay": stay} if migrate else {})}, indent=2)
        return
    for warning in applied.warnings:
        say(f"warning: {warning}", err=True)
    for one in applied.applied:
        say(f"{applied_name(one)} {_would(one.change, dry_run)} in {one.workspace}")
    for line in (*moved, *stay):
        say(line)


def _would(change: str, dry_run: bool) -> str:
    if change == "unchanged":
        return "is unchanged"
    return f"would be {change}" if dry_run else f"is {change}"


async def _apply(
    target: GatewayTarget, who: Identity, workspace: str, documents: Sequence[Mapping[str, Any]], dry_run: bool
) -> Applied:
    async with open_workflows(target, who) as client:
        return await client.workflow.apply(documents, workspace=workspace, dry_run=dry_run)


kind_option: Final = click.option(
    "--kind",
    type=click.Choice([WORKFLOW, *KINDS]),
    default=WORKFLOW,
    show_default=True,
    help="What it is: rules, schedules and state machines are applied by files, too.",
)


@command.command("list")
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


@command.command()
@click.argument("name", metavar="WORKFLOW|EXECUTION")
@kind_option
@click.option(
    "--step", default="", metavar="STEP", help="Only this step of an execution, or an item such as 'fetch[3]'."
)
@click.option("--items", is_flag=True, help="With all items of its steps, up to 1,000.")
@click.option("--mermaid", is_flag=True, help="A Mermaid flowchart of its steps, with their states.")
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
    mermaid: bool,
    as_object: bool,
) -> None:
    """Show a workflow with its steps, or an execution and what it waits for."""
    if mermaid and (kind != WORKFLOW or step or as_object):
        raise click.UsageError("--mermaid draws a whole workflow or execution, and nothing else is printed.")
    if kind != WORKFLOW:
        other = run_client(_show_other, target, who, kind, workspace, name)
        if as_object:
            print_json(other, indent=2)
        else:
            print_other(other)
        return
    found = run_client(_show, target, who, workspace, name, step)
    if mermaid:
        _draw(target, who, found)
    elif as_object:
        print_json(plain(found), indent=2)
    elif isinstance(found, WorkflowDefinition):
        print_definition(found)
    elif step and len(found.steps) == 1:
        print_step(found, found.steps[0])
    else:
        print_execution(found, items=items or bool(step))


def _draw(target: GatewayTarget, who: Identity, found: WorkflowDefinition | Execution) -> None:
    from aether_trio.cli.workflow_mermaid import mermaid_of

    if isinstance(found, WorkflowDefinition):
        say(mermaid_of(found.document, {}), lines=True)
        return
    definition = run_client(_definition, target, who, found.workspace, found.workflow)
    states = {one.step: one.status for one in found.steps if one.item is None and not one.compensates}
    note = (
        "" if definition.version == found.version else f"version {found.version}, on the graph of {definition.version}"
    )
    say(mermaid_of(definition.document, states, note), lines=True)


async def _definition(target: GatewayTarget, who: Identity, workspace: str, name: str) -> WorkflowDefinition:
    async with open_workflows(target, who) as client:
        return await client.workflow.definition(name, workspace=workspace)


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


@command.command()
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


# -- executions ------------------------------------------------------------------------------------


@command.command(
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
    start = _input_of(given)
    pairs = [_pair(one) for one in fields]
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
    _show_end(run_client(_wait, target, who, execution_id, wait_limit(target)), as_object)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is not KEY=VALUE; --input takes JSON.")
    return name, value


def _input_of(given: str | None) -> Any:
    """Return the value of --input; None without one. Raises click.BadParameter."""
    if given is None:
        return None
    return json_argument(given, "--input")


def json_argument(given: str, option: str) -> Any:
    """Read JSON of an argument, of standard input (-) or a file (@FILE)."""
    try:
        if given == "-":
            text = sys.stdin.buffer.read().decode()
        elif given.startswith("@"):
            with click.open_file(given[1:], "rb") as file:
                text = file.read().decode()
        else:
            text = given
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"cannot read {given[1:]}: {error.strerror}", param_hint=option) from None
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}", param_hint=option) from None


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
            definition = await client.workflow.definition(name, workspace=workspace)
            properties, _ = input_properties(definition.document)
            for field, _ in pairs:
                if properties and field not in properties:
                    raise click.UsageError(
                        f"workflow {name} declares no input {field!r}, but: {', '.join(properties)}; --input takes any JSON."
                    )
            given = {**(start or {}), **{field: _value(text, properties.get(field)) for field, text in pairs}}
        return await client.workflow.run(name, given, workspace=workspace, idempotency_key=key)


def _value(text: str, schema: Any) -> Any:
    """Return the value of KEY=VALUE: a declared text, else JSON if it is that."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _wait(target: GatewayTarget, who: Identity, execution_id: str, limit_s: float) -> Execution:
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


def _show_end(execution: Execution, as_object: bool) -> None:
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


@command.command()
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
    _show_end(run_client(_wait, target, who, execution_id, wait_limit(target)), as_object)


async def _find(target: GatewayTarget, who: Identity, given: str) -> str:
    async with open_workflows(target, who) as client:
        return await execution_id_of(client, given)


@command.command()
@click.option(
    "--status",
    type=click.Choice(STATUSES),
    default="live",
    show_default=True,
    help="`live` are all that have not ended.",
)
@click.option("--all", "everything", is_flag=True, help="The same as --status all.")
@click.option("--workflow", default="", metavar="NAME", help="Only of this workflow.")
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
    as_array: bool,
) -> None:
    """Show the newest 100 executions of a workspace, the latest first."""
    wanted = "all" if everything else status
    found = run_client(_executions, target, who, workspace, workflow, wanted)
    if as_array:
        print_json(plain(found), indent=2)
        return
    which = {"live": "no execution that has not ended", "all": "no execution"}.get(wanted, f"no {wanted} execution")
    hint = "; --all shows those that have ended" if wanted == "live" else ""
    print_executions(found, f"{which} in the workspace {workspace}{hint}")


async def _executions(
    target: GatewayTarget, who: Identity, workspace: str, workflow: str, status: str
) -> list[Execution]:
    asked = "running" if status in ("live", "running") else status
    async with open_workflows(target, who) as client:
        found = await client.workflow.executions(workspace, workflow=workflow, status=asked)
    return [one for one in found if status != "running" or one.status == "running"]


def _add_move(name: str, move: Move, done: str, text: str) -> None:
    """Add one subcommand that steers executions."""

    @click.argument("executions", nargs=-1, required=True, metavar="EXECUTION...")
    @access_options
    def steer(target: GatewayTarget, who: Identity, executions: tuple[str, ...]) -> None:
        run_client(_move, target, who, move, executions, done)

    command.command(name, help=text)(steer)


async def _move(target: GatewayTarget, who: Identity, move: Move, given: Sequence[str], done: str) -> None:
    async with open_workflows(target, who) as client:
        for one in given:
            execution_id = await execution_id_of(client, one)
            await move(client.workflow, execution_id)
            say(f"execution {execution_id} {done}")


_add_move(
    "cancel",
    Workflow.cancel,
    "is cancelled",
    "Cancel executions: open steps are told to stop, completed ones are compensated.",
)
_add_move(
    "retry",
    Workflow.retry,
    "goes on",
    "Go on with executions that have failed or were cancelled, after their completed steps.",
)
_add_move("resume", Workflow.resume, "goes on", "Let paused executions go on.")


@command.command()
@click.argument("executions", nargs=-1, required=True, metavar="EXECUTION...")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at it.")
@access_options
def pause(target: GatewayTarget, who: Identity, executions: tuple[str, ...], reason: str) -> None:
    """Let executions begin no further step; what has begun goes on."""

    async def move(workflow: Workflow, execution_id: str) -> None:
        await workflow.pause(execution_id, reason)

    run_client(_move, target, who, move, executions, "is paused")


@command.command()
@click.argument("execution")
@click.argument("name", metavar="SIGNAL")
@click.option("--data", metavar="JSON|@FILE|-", help="What the step that waits for it gets as its result.")
@access_options
def signal(target: GatewayTarget, who: Identity, execution: str, name: str, data: str | None) -> None:
    """Send a signal to an execution; a step that waits for it later gets it, too."""
    value = None if data is None else json_argument(data, "--data")
    execution_id = run_client(_signal, target, who, execution, name, value)
    say(f"signal {name} is delivered to execution {execution_id}")


async def _signal(target: GatewayTarget, who: Identity, given: str, name: str, data: Any) -> str:
    async with open_workflows(target, who) as client:
        execution_id = await execution_id_of(client, given)
        await client.workflow.signal(execution_id, name, data)
        return execution_id


@command.command()
@click.argument("execution")
@click.option(
    "--from", "start", type=click.Choice(["now", "start"]), default="start", show_default=True, help="The first entry."
)
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and entry of the history.")
@access_options
def watch(target: GatewayTarget, who: Identity, execution: str, start: str, as_lines: bool) -> None:
    """Show what happens in an execution, step by step, until it has ended.

    The exit code is 1 unless it is completed. A gateway that restarts is waited for.
    """
    ended = run_client(ExecutionWatch(execution, from_start=start == "start", as_lines=as_lines).run, target, who)
    if ended.status != "completed":
        raise SystemExit(exits.FAILED)


@command.command()
@click.argument("execution")
@click.option(
    "--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only the entries behind this one."
)
@click.option(
    "--replay",
    "path",
    default="",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Replay it on the workflow of this file, and show where they part; the exit code is 1 then.",
)
@click.option("--json", "as_lines", is_flag=True, help="One JSON object per line and entry.")
@access_options
def history(target: GatewayTarget, who: Identity, execution: str, after: int, path: str, as_lines: bool) -> None:
    """Show the history of an execution: what happened, and what followed from it."""
    if path:
        from aether_trio.cli.workflow_past import replay_on_file

        replay_on_file(target, who, execution, path, as_lines)
        return
    run_client(_history, target, who, execution, after, as_lines)


async def _history(target: GatewayTarget, who: Identity, given: str, after: int, as_lines: bool) -> None:
    async with open_workflows(target, who, endless=True) as client:
        execution_id = await execution_id_of(client, given)
        while page := await client.workflow.history(execution_id, after=after):
            print_history(page, as_lines=as_lines, numbers=True)
            after = page[-1].number


@command.command(
    epilog="""
\b
Examples:
  aether workflows answer EXECUTION                       asks, in a terminal
  aether workflows answer EXECUTION review --approve
  aether workflows answer EXECUTION review --reject --text "not yet"
  aether workflows answer EXECUTION 'review[3]' --choice later
  aether workflows answer EXECUTION pay --data '{"sum": 7}'
"""
)
@click.argument("execution")
@click.argument("step", default="", metavar="[STEP]")
@click.option("--approve/--reject", "approved", default=None, help="What is decided; --choice and --data approve.")
@click.option("--choice", default="", metavar="TEXT", help="One of the choices that the question offers.")
@click.option("--text", default="", metavar="TEXT", help="What to say besides.")
@click.option("--data", metavar="JSON|@FILE|-", help="What the form of the question wants.")
@asking_options(Kind.USER, "Who answers.  [default: a window of the user admin, an administrator]")
def answer(
    target: GatewayTarget,
    who: Identity,
    execution: str,
    step: str,
    approved: bool | None,
    choice: str,
    text: str,
    data: str | None,
) -> None:
    """Answer the question that a step of an execution asks.

    STEP may be left out if one step asks. In a terminal the question is shown and the answer asked
    for, unless an option gives it.
    """
    from aether_trio.cli.workflow_answer import GivenAnswer, answer_question

    value = None if data is None else json_argument(data, "--data")
    if approved is None and (choice or data is not None or text):
        approved = True
    run_client(answer_question, target, who, execution, step, GivenAnswer(approved, choice, text, value))
