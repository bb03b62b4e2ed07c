"""`aether quotas`: show and set the limits of single workspaces."""

from __future__ import annotations

from collections.abc import Mapping

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, name_and_value
from aether_trio.cli.output import print_json, print_table, run_client, say, warn_unconfirmed
from aether_trio.cli.workspace_calls import EVERY, QUOTA_PREFIX, Op, answer_of, ask, list_all
from aether_trio.model.identity import Identity
from aether_trio.model.quotas import QUOTA_NAMES, QuotaError, check_quota_name, parse_quota, quota_text
from aether_trio.wire.pb import aether_pb2 as pb


@click.group(
    name="quotas",
    epilog=f"""
\b
Quotas:
  {f"{chr(10)}  ".join(QUOTA_NAMES)}

\b
Examples:
  aether quotas list
  aether quotas list lab
  aether quotas set lab connections_per_workspace=50 workspace_rate_per_s=200
  aether quotas clear lab workspace_rate_per_s
  aether quotas clear lab --all
""",
)
def command() -> None:
    """Show, set and clear the limits of single workspaces.

    A quota overrides the setting `limits.NAME` in one workspace, on all nodes. 0 is no limit, but
    for sizes.
    """


@command.command("list")
@click.argument("workspace", required=False)
@click.option("--json", "as_json", is_flag=True, help="A JSON object: workspace to quotas; * stands for all others.")
@access_options
def list_quotas(target: GatewayTarget, who: Identity, workspace: str | None, as_json: bool) -> None:
    """Show the limits in force in WORKSPACE, or all quotas that are set."""
    found = run_client(_list, target, who, workspace)
    if as_json:
        print_json({name: {quota: _number(text) for quota, text in quotas.items()} for name, quotas in found.items()})
        return
    defaults = found[EVERY]
    if workspace is not None:
        own = found[workspace]
        print_table(
            ("quota", "limit", ""),
            [(name, own.get(name, text), "" if name in own else "by the settings") for name, text in defaults.items()],
            "no quotas",
        )
        return
    rows = [(name, quota, text) for name, quotas in found.items() for quota, text in quotas.items()]
    print_table(("workspace", "quota", "limit"), rows, "no quotas")


async def _list(target: GatewayTarget, who: Identity, workspace: str | None) -> dict[str, dict[str, str]]:
    """Return quotas by workspace; those of "*" are the limits of all others."""
    async with open_client(target, who) as client:
        defaults = (await answer_of(client, Op(op=Op.GET, workspace_id=EVERY))).workspace
        found = {EVERY: _quotas(defaults)}
        if workspace is not None:
            found[workspace] = _quotas((await answer_of(client, Op(op=Op.GET, workspace_id=workspace))).workspace)
        else:
            listed = await list_all(client)
            found |= {one.workspace_id: quotas for one in listed if (quotas := _quotas(one))}
        return found


def _quotas(info: pb.WorkspaceInfo) -> dict[str, str]:
    found = sorted(info.metadata.items())
    return {name.removeprefix(QUOTA_PREFIX): value for name, value in found if name.startswith(QUOTA_PREFIX)}


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value == int(value) else value


@command.command("set")
@click.argument("workspace")
@click.argument("quotas", nargs=-1, required=True, metavar="NAME=NUMBER...")
@access_options
def set_quotas(target: GatewayTarget, who: Identity, workspace: str, quotas: tuple[str, ...]) -> None:
    """Set limits of a workspace that was created."""
    given = dict(name_and_value(one, "NAME=NUMBER") for one in quotas)
    try:
        values = {name: quota_text(parse_quota(name, text)) for name, text in given.items()}
    except QuotaError as error:
        raise click.BadParameter(str(error)) from None
    _write(target, who, workspace, values)
    for name, text in values.items():
        say(f"{workspace}: {name} is {text}")


@command.command()
@click.argument("workspace")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All that are set.")
@access_options
def clear(target: GatewayTarget, who: Identity, workspace: str, names: tuple[str, ...], everything: bool) -> None:
    """Clear quotas of a workspace: the settings count again."""
    if bool(names) == everything:
        raise click.UsageError("name the quotas to clear, or give --all.")
    try:
        for name in names:
            check_quota_name(name)
    except QuotaError as error:
        raise click.BadParameter(str(error)) from None
    _write(target, who, workspace, dict.fromkeys(names or QUOTA_NAMES, ""))
    say(f"{workspace}: {', '.join(names) or 'all quotas'} cleared")


def _write(target: GatewayTarget, who: Identity, workspace: str, values: Mapping[str, str]) -> None:
    if not workspace:
        raise exits.CliError("the name of the workspace is empty", exits.USAGE)
    info = pb.WorkspaceInfo(
        workspace_id=workspace, metadata={f"{QUOTA_PREFIX}{name}": text for name, text in values.items()}
    )
    answer = run_client(ask, target, who, Op(op=Op.UPDATE, workspace_id=workspace, workspace=info))
    warn_unconfirmed(answer.message)
