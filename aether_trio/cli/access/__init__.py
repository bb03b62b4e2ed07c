"""`aether access`: who may do what."""

from __future__ import annotations

import click

from aether_trio.cli.access.fallbacks import fallback
from aether_trio.cli.access.groups import groups, roles
from aether_trio.cli.access.locks import lock, locks, unlock
from aether_trio.cli.access.policies import apply, export, replay, test
from aether_trio.cli.access.questions import explain, lint, paths, who
from aether_trio.cli.access.rules import grant, list_rules, revoke


@click.group(
    name="access",
    epilog="""
\b
Examples:
  aether access grant ag::red::ann::1 workspace:blue readwrite --reason "helps out" --expires 8h
  aether access explain ag::red::ann::1 workspace:blue readwrite
  aether access who workspace:blue
  aether access lock 'ag::prod::*' --expires 2h --reason "investigation"
  aether access apply policy.yaml --dry-run
""",
)
def command() -> None:
    """Say who may do what: rules, groups, locks, and policies in files.

    A change is in force on every node when its command ends; nodes that have not confirmed it are
    named.
    """


for one in (
    grant, revoke, list_rules, explain, who, lint, lock, unlock, locks, groups, roles, fallback,
    test, apply, replay, paths, export,
):  # fmt: skip
    command.add_command(one)
