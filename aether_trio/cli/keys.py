"""`aether keys`: makes an API key and its record for the settings."""

from __future__ import annotations

import secrets
import textwrap
from datetime import UTC, datetime
from typing import get_args

import click
import msgspec
import yaml

from aether_trio.cli.output import print_json, say
from aether_trio.config import ApiKey
from aether_trio.config.settings import Principal
from aether_trio.model.patterns import identity_pattern_problem
from aether_trio.services.credentials.checker import hash_api_key, new_api_key


@click.group(name="keys")
def command() -> None:
    """Make API keys.

    The gateway keeps only a hash of a key, in auth.api_keys of its settings; the key itself is
    shown once, here.
    """


@command.command(
    epilog="""
\b
Examples:
  aether keys new --principal agent                        agents, in any workspace
  aether keys new --principal agent --workspace 'prod*'    agents of the production workspaces
  aether keys new --principal service --identity 'sv::billing::*' --id billing
"""
)
@click.option(
    "--principal", required=True, type=click.Choice(list(get_args(Principal))),
    help="The kind of principal that may use it. Orchestrators and the workflow engine administer the gateway; so does a key for *, "
    "which is for all kinds.",
)  # fmt: skip
@click.option(
    "--workspace", "workspaces", multiple=True, metavar="PATTERN",
    help="A workspace it reaches; * and ? are wildcards. May be repeated. Default: all.",
)  # fmt: skip
@click.option(
    "--identity", default="*", show_default=True, metavar="PATTERN",
    help="The identities that may use it, such as 'ag::*::echo::*', or a user's id.",
)  # fmt: skip
@click.option("--id", "key_id", metavar="NAME", help="Its name in logs and errors. Default: a made-up one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {key, record}.")
def new(principal: Principal, workspaces: tuple[str, ...], identity: str, key_id: str | None, as_json: bool) -> None:
    """Make an API key. Prints it once, with its record for the gateway's settings."""
    if problem := identity_pattern_problem(identity):
        raise click.BadParameter(problem, param_hint="--identity")
    key = new_api_key()
    record = ApiKey(
        id=key_id or f"key-{secrets.token_hex(4)}",
        sha256=hash_api_key(key),
        principal=principal,
        identity=identity,
        workspaces=workspaces or ("*",),
        created=datetime.now(UTC).date().isoformat(),
    )
    fields = msgspec.to_builtins(record)
    if as_json:
        print_json({"key": key, "record": fields})
        return
    entry = yaml.safe_dump([fields], sort_keys=False, default_flow_style=None, width=200).rstrip()
    say("The key, shown this once:\n", err=True, lines=True)
    say(key)
    say("\nPut this into the gateway's settings file, and start it with --config:\n", err=True, lines=True)
    say("auth:\n  api_keys:\n" + textwrap.indent(entry, "    "), lines=True)
    say(
        "\nClients show the key as the credential api_key (SDK: Credentials.api_key, shell: AETHER_API_KEY).",
        err=True,
        lines=True,
    )
