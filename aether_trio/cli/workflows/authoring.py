"""Checks files of workflows, and applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.records import plain
from aether_trio.cli.workflows.connection import (
    open_workflows,
)
from aether_trio.cli.workflows.files import files_of, read_workflow_files
from aether_trio.cli.workflows.texts import (
    applied_name,
)
from aether_trio.client.operations.workflow_values import Applied
from aether_trio.model.identity import Identity


@click.command(
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


@click.command(
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
        from aether_trio.cli.workflows.replays import migrate_live

        moved, stay = run_client(migrate_live, target, who, workspace, applied.applied)
    if as_object:
        print_json({**plain(applied), **({"moved": moved, "stay": stay} if migrate else {})}, indent=2)
        return
    for warning in applied.warnings:
        say(f"warning: {warning}", err=True)
    for one in applied.applied:
        say(f"{applied_name(one)} {_would(one.change, dry_run)} in {one.workspace}")
        if one.secret:
            say(f"the secret of {applied_name(one)}, which is not shown again: {one.secret}")
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
