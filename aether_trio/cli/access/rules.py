"""`aether access grant`, `revoke` and `list`: the rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import click

from aether_trio.cli.access.arguments import (
    END,
    LEVEL,
    PRINCIPAL,
    RESOURCE,
    RESOURCE_OR_TYPE,
    level_name,
    until,
)
from aether_trio.cli.access.asking import AccessSource, Ask, say_done, source_options
from aether_trio.cli.access.state import list_all
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.output import print_json, print_table, say
from aether_trio.cli.records import plain
from aether_trio.client.operations.access_rules import AccessRule
from aether_trio.client.operations.records import read
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.spellings import SpellingError, parse_principal, parse_resource
from aether_trio.model.access.spellings import principal_text as principal_of
from aether_trio.model.access.spellings import resource_text as resource_of
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation


@click.command()
@click.argument("principal", type=PRINCIPAL)
@click.argument("resource", type=RESOURCE)
@click.argument("level", type=LEVEL)
@click.option("--reason", default="", help="Why; it is listed with the rule.")
@click.option("--expires", type=END, metavar="8h|DATE", help="When the rule ends.  [default: never]")
@click.option("--json", "as_json", is_flag=True, help="The rule as a JSON object.")
@source_options
def grant(
    source: AccessSource,
    principal: tuple[str, str],
    resource: tuple[str, str],
    level: AccessLevel,
    reason: str,
    expires: int | None,
    as_json: bool,
) -> None:
    """Give a principal a level on a resource.

    It is in force on every node when the command ends. A rule for the same principal and
    resource is replaced.

    \b
    PRINCIPAL  an identity (ag::red::ann::1), a user (user:eve), group:NAME, role:NAME,
               _any_agent, _any_task, _any_service, _any_authenticated_user, or a pattern
    RESOURCE   workspace:NAME, kv_key:KEY, admin/acl, capability/NAME, ..., or a pattern
    LEVEL      none, read, readwrite, manage, admin, superadmin
    """
    request = pb.ACLGrantRequest(
        principal_type=principal[0],
        principal_id=principal[1],
        resource_type=resource[0],
        resource_id=resource[1],
        access_level=level,
        reason=reason,
        expires_at=expires or 0,
    )
    answer = source.ask(Op(op=Op.GRANT, grant_request=request))
    if as_json:
        print_json(plain(read(AccessRule, answer.rule)), indent=2)
        return
    say_done(answer.message)
    say(f"rule {answer.rule.rule_id}")
    if level is AccessLevel.NONE:
        say("groups and earlier tiers outvote NONE; to bar a participant, use `aether access lock`", err=True)


@click.command()
@click.argument("rule", metavar="RULE_ID | PRINCIPAL RESOURCE", nargs=-1, required=True)
@source_options
def revoke(source: AccessSource, rule: tuple[str, ...]) -> None:
    """Take a rule away, by its id or its names.

    It decides nothing on any node when the command ends.
    """
    if len(rule) == 1:
        say_done(source.run(lambda ask: _revoke(ask, rule[0])).message)
        return
    if len(rule) == 2:
        try:
            principal, resource = parse_principal(rule[0]), parse_resource(rule[1])
        except SpellingError as error:
            raise click.BadParameter(str(error)) from None
        op = Op(op=Op.REVOKE, rule_filter=_filter(principal, resource))
    else:
        raise click.UsageError("Give the id of a rule, or its principal and resource.")
    answer = source.ask(op)
    say_done(answer.message)


async def _revoke(ask: Ask, given: str) -> pb.ACLResponse:
    """Revoke the rule whose id begins with `given`."""

    async def listed() -> AsyncIterator[Sequence[Listed]]:
        yield [(one.rule_id, _about(one)) for one in await list_all(ask, pb.ACLRuleFilter())]

    return await ask(Op(op=Op.REVOKE, rule_id=await full_id(given, "rule", listed())))


def _about(one: pb.ACLRuleInfo) -> str:
    who, what = principal_of(one.principal_type, one.principal_id), resource_of(one.resource_type, one.resource_id)
    return f"{who} {level_name(one.access_level)} on {what}"


@click.command("list")
@click.option("--principal", type=PRINCIPAL, metavar="PRINCIPAL", help="Only rules for exactly this principal.")
@click.option("--resource", type=RESOURCE_OR_TYPE, metavar="RESOURCE|TYPE", help="Only rules on this resource or type.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@source_options
def list_rules(
    source: AccessSource, principal: tuple[str, str] | None, resource: tuple[str, str] | None, as_json: bool
) -> None:
    """Show the rules, the oldest first."""
    wanted = _filter(principal or ("", ""), resource or ("", ""))
    found = source.run(lambda ask: list_all(ask, wanted))
    if as_json:
        print_json([plain(read(AccessRule, one)) for one in found], indent=2)
        return
    print_table(
        ("principal", "level", "resource", "until", "granted by", "reason", "rule"),
        [
            (
                principal_of(one.principal_type, one.principal_id),
                level_name(one.access_level),
                resource_of(one.resource_type, one.resource_id),
                until(one.expires_at),
                one.granted_by,
                one.reason,
                one.rule_id,
            )
            for one in found
        ],
        "no rule fits",
        whole=("principal", "resource", "rule"),
    )


def _filter(principal: tuple[str, str], resource: tuple[str, str]) -> pb.ACLRuleFilter:
    return pb.ACLRuleFilter(
        principal_type=principal[0],
        principal_id=principal[1],
        resource_type=resource[0],
        resource_id=resource[1],
    )
