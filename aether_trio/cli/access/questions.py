"""`aether access explain`, `who`, `lint` and `paths`: questions about the rules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import click

from aether_trio.cli import exits
from aether_trio.cli.access.arguments import LEVEL, PRINCIPAL, RESOURCE, level_name
from aether_trio.cli.access.asking import AccessSource, Ask, source_options
from aether_trio.cli.access.policy_file import load_policy
from aether_trio.cli.access.state import list_all, read_lock, read_state
from aether_trio.cli.output import print_json, print_table, say
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.lint import lint as lint_rules
from aether_trio.model.access.paths import ACL, paths_to
from aether_trio.model.access.patterns import compile_pattern, literal_of
from aether_trio.model.access.policy import AccessState, judge, rehearsed, workspace_of
from aether_trio.model.access.rules import ANY, GROUP, OWN_PRINCIPAL, ROLE, WILDCARD, Rule
from aether_trio.model.access.seeds import SYSTEM
from aether_trio.model.access.spellings import principal_text as principal_of
from aether_trio.model.access.spellings import resource_text as resource_of
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation

_TIERS: Final = {
    "Explicit rule": 1,
    "Wildcard rule": 2,
    "Any-resource rule": 3,
    "Wildcard any-resource rule": 4,
    "Glob pattern rule": 5,
}
"""By the beginning of a verdict's reason; every other one is of the last tier."""
_LAST_TIER: Final = 6


@click.command()
@click.argument("principal", type=PRINCIPAL)
@click.argument("resource", type=RESOURCE)
@click.argument("level", type=LEVEL, default="read")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@source_options
def explain(
    source: AccessSource,
    principal: tuple[str, str],
    resource: tuple[str, str],
    level: AccessLevel,
    as_json: bool,
) -> None:
    """Say whether a principal may, and by which rule.

    Shows every rule that counts, and the one that decides.

    Rules and locks are asked. A credential may allow less than they do: it has its own workspaces
    and scopes.
    """
    op = Op(
        op=Op.EXPLAIN_ACCESS,
        principal=pb.PrincipalRef(principal_type=principal[0], principal_id=principal[1]),
        resource_type=resource[0],
        resource_id=resource[1],
        required_level=level,
    )

    async def main(ask: Ask) -> tuple[pb.ACLAccessExplanationInfo, str]:
        found = (await ask(op)).explanation
        return found, _lock_on(principal, await list_all(ask, pb.ACLRuleFilter(resource_type="lock")))

    found, lock = source.run(main)
    allowed = found.allowed and not lock
    tier = next((number for text, number in _TIERS.items() if found.reason.startswith(text)), _LAST_TIER)
    # They come by tier and level.
    deciding = next((one for one in found.contributions if not one.expired), None)
    if as_json:
        print_json(
            {
                "allowed": allowed,
                "level": level_name(found.effective_access_level),
                "tier": tier,
                "reason": found.reason,
                "locked_by": lock,
                "rule_id": deciding.rule_id if deciding else "",
                "subjects": list(found.subjects),
                "contributions": [
                    {
                        "subject": one.subject,
                        "level": level_name(one.access_level),
                        "resource": one.resource,
                        "rule_id": one.rule_id,
                        "expired": one.expired,
                    }
                    for one in found.contributions
                ],
            },
            indent=2,
        )
        return
    who, what = principal_of(*principal), resource_of(*resource)
    say(f"{'ALLOW' if allowed else 'DENY'}: {who} {'may' if allowed else 'may not'} {level.name.lower()} {what}")
    if lock:
        say(f"  locked by the pattern {lock}, which no rule outvotes")
    say(f"  level {level_name(found.effective_access_level)}, tier {tier}: {found.reason}")
    if deciding is not None and deciding.rule_id:
        say(f"  rule {deciding.rule_id}: {deciding.subject} on {deciding.resource}")
    if len(found.subjects) > 1:
        say(f"  in {', '.join(found.subjects[1:])}")
    if found.contributions:
        say("")
        print_table(
            ("subject", "level", "resource", "rule", ""),
            [
                (
                    one.subject,
                    level_name(one.access_level),
                    one.resource,
                    one.rule_id,
                    "expired" if one.expired else ("decides" if one is deciding else ""),
                )
                for one in found.contributions
            ],
            "",
            whole=("subject", "resource", "rule"),
        )


def _lock_on(principal: tuple[str, str], locks: list[pb.ACLRuleInfo]) -> str:
    """Return the pattern of a lock on a principal, "" without one."""
    index = AccessIndex()
    for one in locks:
        index.put_lock(read_lock(one))
    text = f"us::{principal[1]}::" if principal[0] == "user" else principal[1]
    found = index.locked(*principal, text, _now_ms())
    return "" if found is None else found.pattern


def _now_ms() -> int:
    return int(time.time() * 1000)


# -- who may ---------------------------------------------------------------------------------------


@click.command()
@click.argument("resource", type=RESOURCE)
@click.argument("level", type=LEVEL, default="read")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@source_options
def who(source: AccessSource, resource: tuple[str, str], level: AccessLevel, as_json: bool) -> None:
    """Show who has a level (or a higher one) on a resource.

    These are the principals that rules and groups name, and the rules for many at once: wildcards,
    patterns, fallbacks and the rule `own`. Any of these may be outvoted for a single principal.
    """
    if literal_of(resource[1]) is None:
        raise click.BadParameter(f"{resource_of(*resource)} is a pattern; ask about one resource")
    state = source.run(read_state)
    found = [one for one in _holders(state, resource) if one[1] >= level]
    if as_json:
        print_json([{"principal": name, "level": held.name.lower(), "by": by} for name, held, by in found], indent=2)
        return
    print_table(
        ("principal", "level", "by"),
        [(name, held.name.lower(), by) for name, held, by in found],
        f"no rule gives {level.name.lower()} on {resource_of(*resource)}",
    )


def _holders(state: AccessState, resource: tuple[str, str]) -> Iterator[tuple[str, AccessLevel, str]]:
    """Yield principals with their levels, and by what; then rules for many principals."""
    index, now_ms = state.index(), _now_ms()
    named: dict[tuple[str, str], None] = {}
    many: list[Rule] = []
    for rule in state.rules.values():
        name = literal_of(rule.principal_id)
        if name is None or rule.principal_type == WILDCARD:
            many.append(rule)
        else:
            named[rule.principal_type, name] = None
    for member in state.members.values():
        named[member.kind, member.name] = None
        named[member.member_type, member.member_id] = None
    for principal in sorted(named, key=lambda one: (one[0] not in {GROUP, ROLE}, one)):
        _, by = judge(index, principal, resource, AccessLevel.READ, now_ms)
        verdict = index.decide(*principal, *resource, now_ms, own_workspace=workspace_of(*principal))
        locked = by.startswith("the lock")
        yield principal_of(*principal), AccessLevel.NONE if locked else verdict.level, by
    for rule in many:
        if rule.is_live(now_ms) and _is_about(rule, resource):
            yield principal_of(rule.principal_type, rule.principal_id), rule.level, f"rule {rule.rule_id}"
    for category, level in state.fallbacks.items():
        if category.endswith(f"_{resource[0]}"):
            yield f"every {category.removesuffix(f'_{resource[0]}')}", level, f"the fallback {category}"


def _is_about(rule: Rule, resource: tuple[str, str]) -> bool:
    if rule.principal_id == OWN_PRINCIPAL:
        return resource[0] == "workspace" or resource == ("kv_scope", "workspace")
    if rule.resource_type != resource[0]:
        return False
    return rule.resource_id == ANY or compile_pattern(rule.resource).matches(f"{resource[0]}:{resource[1]}")


# -- lint ------------------------------------------------------------------------------------------


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also rules with which the gateway began.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@source_options
def lint(source: AccessSource, everything: bool, as_json: bool) -> None:
    """Show rules that do not do what they seem to.

    Exits with 1 if there are any.
    """
    state = source.run(read_state)
    seeds = set() if everything else {one.rule_id for one in state.rules.values() if one.granted_by == SYSTEM}
    found = [one for one in lint_rules(state.index(), _now_ms()) if one.rule_id not in seeds]
    if as_json:
        rows = [
            {
                "code": one.code.value,
                "rule_id": one.rule_id,
                "subject": one.subject,
                "resource": one.resource,
                "message": one.message,
            }
            for one in found
        ]
        print_json(rows, indent=2)
    else:
        print_table(
            ("finding", "subject", "resource", "what", "rule"),
            [(one.code.value, one.subject, one.resource, one.message, one.rule_id) for one in found],
            "no rule is suspicious",
            whole=("subject", "resource", "rule"),
        )
    if found:
        raise SystemExit(exits.FAILED)


# -- paths -----------------------------------------------------------------------------------------


@click.command()
@click.argument("policy", metavar="FILE", required=False, type=click.Path(dir_okay=False))
@click.option("--live", "principal", type=PRINCIPAL, metavar="PRINCIPAL", help="By the rules of the gateway.")
@click.option("--from", "start", type=PRINCIPAL, metavar="PRINCIPAL", help="With FILE: by the rules in the file.")
@click.option("--to", "resource", type=RESOURCE, default=resource_of(*ACL), show_default=True, metavar="RESOURCE")
@click.option("--level", type=LEVEL, default="admin", show_default=True, metavar="LEVEL")
@source_options
def paths(
    source: AccessSource,
    policy: str | None,
    principal: tuple[str, str] | None,
    start: tuple[str, str] | None,
    resource: tuple[str, str],
    level: AccessLevel,
) -> None:
    """Show the ways by which a principal gets to a level.

    A way is a chain of memberships, rules, and powers that rules give: to make tokens of others, or
    to act for users. `FILE --from PRINCIPAL` looks into a policy file, `--live PRINCIPAL` into the
    rules of the gateway. Exits with 1 if there is a way.
    """
    if (policy is None) == (principal is None) or (policy is None) != (start is None):
        raise click.UsageError("Give FILE and --from PRINCIPAL, or --live PRINCIPAL.")
    now_ms = _now_ms()
    state = source.run(read_state) if policy is None else rehearsed(load_policy(policy), now_ms=now_ms)
    asked = principal or start
    assert asked is not None
    found = paths_to(state.index(), asked, resource, level, now_ms=now_ms)
    for number, path in enumerate(found.paths, 1):
        say(f"{number}.")
        for step in path:
            say(f"   {step}")
    if not found.complete:
        say("there may be more: the search was cut off", err=True)
    what = f"{level.name.lower()} on {resource_of(*resource)}"
    if found.paths:
        raise SystemExit(exits.FAILED)
    say(f"{principal_of(*asked)} has no way to {what}")
