"""`aether access fallback`: the levels where no rule decides."""

from __future__ import annotations

from typing import Final

import click

from aether_trio.cli.access.arguments import LEVEL, level_name
from aether_trio.cli.access.asking import AccessSource, say_done, source_options
from aether_trio.cli.access.state import list_all
from aether_trio.cli.output import print_json, print_table, say
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import RESOURCE_TYPES
from aether_trio.model.access.spellings import moment_text, nearest_hint
from aether_trio.model.identity import PrincipalType
from aether_trio.model.text import shown
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation

CATEGORIES: Final = tuple(f"{kind.type_name}_{resource}" for kind in PrincipalType for resource in RESOURCE_TYPES)
"""The types of principals and resources; those that agents have registered are not among them."""


@click.group("fallback")
def fallback() -> None:
    """Show and set the levels that principals have where no rule decides.

    A category is the type of a principal and that of a resource, such as agent_workspace.
    """


@fallback.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@source_options
def list_fallbacks(source: AccessSource, as_json: bool) -> None:
    """Show all categories that have a level; the others have none."""
    found = source.run(lambda ask: list_all(ask, pb.ACLRuleFilter(resource_type="fallback")))
    if as_json:
        print_json([{"category": one.rule_id, "level": level_name(one.access_level)} for one in found], indent=2)
        return
    print_table(
        ("category", "level", "set by", "since"),
        [
            (one.rule_id, level_name(one.access_level), one.granted_by, moment_text(one.granted_at * 1000))
            for one in found
        ],
        "there is no fallback: without a rule nothing is allowed",
    )


@fallback.command()
@click.argument("category")
@source_options
def get(source: AccessSource, category: str) -> None:
    """Print the level of a category."""
    found = source.run(lambda ask: list_all(ask, pb.ACLRuleFilter(resource_type="fallback")))
    levels = {one.rule_id: level_name(one.access_level) for one in found}
    if category not in levels and category not in CATEGORIES and "/" not in category:
        raise click.BadParameter(
            f"{shown(category)} is no category{nearest_hint(category, CATEGORIES)}", param_hint="CATEGORY"
        )
    say(levels.get(category, "none"))


@fallback.command("set")
@click.argument("category")
@click.argument("level", type=LEVEL)
@source_options
def set_level(source: AccessSource, category: str, level: AccessLevel) -> None:
    """Set the level of a category."""
    request = pb.ACLSetFallbackRequest(rule_category=category, fallback_access_level=level)
    op = Op(op=Op.SET_FALLBACK_POLICY, rule_category=category, fallback_request=request)
    say_done(source.ask(op).message)
