"""`aether access test`, `apply`, `replay` and `export`: policies in files."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any, Final

import click
import msgspec
import yaml

from aether_trio.cli import exits
from aether_trio.cli.access.arguments import START, level_name
from aether_trio.cli.access.asking import AccessSource, Ask, say_done, source_options
from aether_trio.cli.access.policy_file import load_policy
from aether_trio.cli.access.state import list_all, read_state
from aether_trio.cli.output import print_json, print_table, say
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.policy import (
    NO_BASE,
    AccessState,
    Policy,
    apply_changes,
    difference,
    rehearsed,
    run_tests,
    state_problems,
)
from aether_trio.model.access.replay import Replayed, ReplayedDecision
from aether_trio.model.access.seeds import ADMINISTRATORS, CLOSED, OPEN, SYSTEM
from aether_trio.model.access.spellings import moment_text
from aether_trio.model.access.spellings import principal_text as principal_of
from aether_trio.model.access.spellings import resource_text as resource_of
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation
_PAGE: Final = 1000
_BY_CREDENTIAL: Final = "credential gives"
"""In the reason of a denial that a credential, and no rule, has caused."""
_FILE: Final = click.argument("policy", metavar="FILE", type=click.Path(dir_okay=False))


@click.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="A JSON array of the tests.")
def test(policy: str, as_json: bool) -> None:
    """Run the tests of a policy file, without a gateway.

    They are run against a new gateway with the file's `base` to which the file is applied. Exits
    with 1 if a test fails.
    """
    loaded = load_policy(policy)
    now_ms = int(time.time() * 1000)
    state = rehearsed(loaded, now_ms=now_ms)
    problems = state_problems(state)
    if problems:
        raise exits.CliError("\n".join(f"{policy}: {one}" for one in problems), lines=True)
    outcomes = run_tests(loaded.tests, state.index(), now_ms)
    failed = sum(not one.passed for one in outcomes)
    if as_json:
        rows = [
            {"test": one.test.text, "line": one.test.line, "passed": one.passed, "why": one.why} for one in outcomes
        ]
        print_json(rows, indent=2)
    else:
        for one in outcomes:
            at = f" at {moment_text(one.test.at_ms)}" if one.test.at_ms else ""
            say(f"{'ok    ' if one.passed else 'FAILED'} {policy}:{one.test.line}: {one.test.text}{at}")
            say(f"       {one.why}")
        say(f"{len(outcomes) - failed} of {len(outcomes)} tests pass")
    if failed:
        raise SystemExit(exits.FAILED)


@click.command()
@_FILE
@click.option("--dry-run", is_flag=True, help="Show the differences and run the tests only.")
@click.option("--prune", is_flag=True, help="Also remove what sections of the file do not name.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@source_options
def apply(source: AccessSource, policy: str, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Apply a policy file in one transaction.

    Shows the differences first. It is refused as a whole if a test of the file fails against what
    the rules would be then, or if it gives more than you have. Without --prune nothing is taken
    away; with it, of each section that the file has, what it does not name goes, and the rules of
    its `base` stay.
    """
    loaded = load_policy(policy)

    async def main(ask: Ask) -> tuple[dict[str, Any], str]:
        planned = json.loads((await ask(_order("plan", loaded, prune, -1))).rule.reason)
        if not as_json:
            _show(planned, prune=prune)
        if planned["failed"]:
            for test, _, why in planned["failures"]:
                say(f"FAILED {policy}:{test[-1]}: {test[0]}", err=True)
                say(f"       {why}", err=True)
            raise exits.CliError(f"{planned['failed']} of {planned['tests']} tests fail; nothing was changed")
        if dry_run or not planned["lines"]:
            return planned, ""
        applied = await ask(_order("apply", loaded, prune, planned["state"]))
        return planned, applied.message

    planned, message = source.run(main, endless=True)
    if as_json:
        print_json(planned | {"applied": bool(message)}, indent=2)
    if message and not as_json:
        say_done(f"applied: {message}")


def _order(action: str, policy: Policy, prune: bool, expected: int) -> pb.ACLOperation:
    from aether_trio.services.access.policy_service import MAX_DOCUMENT_BYTES, PolicyOrder

    document = msgspec.json.encode(PolicyOrder(1, policy, prune, expected)).decode()
    if len(document) > MAX_DOCUMENT_BYTES:
        raise exits.CliError(
            f"the policy has {len(document)} bytes as a message; at most {MAX_DOCUMENT_BYTES} are allowed: "
            f"divide its {len(policy.rules)} rules into files, or use groups and patterns"
        )
    request = pb.ACLGrantRequest(resource_type="policy", resource_id=action, reason=document)
    return Op(op=Op.GRANT, grant_request=request)


def _show(planned: dict[str, Any], *, prune: bool) -> None:
    from aether_trio.model.access.policy import ChangeLine

    for one in planned["lines"]:
        say(str(ChangeLine(*one)))
    changes = planned["added"] + planned["changed"] + planned["removed"]
    if len(planned["lines"]) < changes:
        say(f"... and {changes - len(planned['lines'])} more")
    say(f"{planned['added']} to add, {planned['changed']} to change, {planned['removed']} to remove")
    if planned["unnamed"] and not prune:
        say(f"{planned['unnamed']} that the file does not name stay; --prune removes them")


# -- replay ----------------------------------------------------------------------------------------


@click.command()
@_FILE
@click.option("--since", type=START, default="7d", show_default=True, metavar="7d|DATE", help="From when on.")
@click.option("--prune", is_flag=True, help="As if the file were applied with --prune.")
@click.option("--allow-denials", is_flag=True, help="Exit with 0 although something would be denied.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@source_options
def replay(source: AccessSource, policy: str, since: int, prune: bool, allow_denials: bool, as_json: bool) -> None:
    """Decide recorded accesses again by a policy file.

    Shows which of them would be decided otherwise. Exits with 1 if one that was allowed would be
    denied. Credentials and the limits of grants are not asked again: decisions that rested on these
    are counted, and left as they were.
    """
    loaded = load_policy(policy)

    async def main(ask: Ask) -> Replayed:
        state = await read_state(ask)
        ids, now_ms = count(1), int(time.time() * 1000)
        found = difference(loaded, state, now_ms=now_ms, new_id=lambda: f"file-{next(ids)}", prune=prune)
        index = apply_changes(state, found.changes).index()
        replayed = Replayed()
        async for one in _decisions(ask, since):
            replayed.add(_recorded(one), index)
        return replayed

    found = source.run(main, endless=True)
    if as_json:
        print_json(_as_json(found), indent=2)
    else:
        _show_replayed(found, since)
    if found.denied and not allow_denials:
        raise SystemExit(exits.FAILED)


async def _decisions(ask: Ask, since: int) -> AsyncIterator[pb.ACLAuditEntryInfo]:
    """Yield the recorded decisions since a moment in Unix seconds, the newest first."""
    known: set[int] = set()
    before = offset = 0
    while True:
        wanted = pb.ACLAuditFilter(start_time=since, end_time=before, limit=_PAGE, offset=offset)
        page = (await ask(Op(op=Op.QUERY_AUDIT, audit_filter=wanted))).audit_entries
        if not page:
            return
        new = [one for one in page if one.audit_id not in known]
        for one in new:
            yield one
        # The next page begins in the second in which this one ends.
        oldest = page[-1].timestamp
        known = {one.audit_id for one in page if one.timestamp == oldest} | (known if oldest == before else set())
        offset = 0 if new and oldest != before else offset + len(page)
        before = oldest


def _show_replayed(found: Replayed, since: int) -> None:
    say(f"{found.total} decisions since {moment_text(since * 1000)}, of which {found.left} do not rest on rules")
    print_table(
        ("would be", "times", "principal", "operation", "resource", "newest", "by"),
        [
            (
                "allowed" if kind.allowed else "denied",
                str(one.times),
                principal_of(*kind.principal),
                kind.operation,
                resource_of(*kind.resource),
                moment_text(one.newest_ms),
                one.why,
            )
            for kind, one in found.changed().items()
        ],
        "all would be decided as they were",
        whole=("principal", "resource"),
    )
    if found.denied or found.allowed:
        say(f"{found.denied} would be denied, {found.allowed} would be allowed")


def _as_json(found: Replayed) -> dict[str, Any]:
    return {
        "decisions": found.total,
        "not_by_rules": found.left,
        "denied": found.denied,
        "allowed": found.allowed,
        "changes": [
            {
                "allowed": kind.allowed,
                "times": one.times,
                "principal": principal_of(*kind.principal),
                "operation": kind.operation,
                "resource": resource_of(*kind.resource),
                "newest": moment_text(one.newest_ms),
                "by": one.why,
            }
            for kind, one in found.changed().items()
        ],
    }


def _recorded(one: pb.ACLAuditEntryInfo) -> ReplayedDecision:
    subject = one.metadata.get("subject", "")
    groups = one.metadata.get("groups", "")
    return ReplayedDecision(
        one.timestamp * 1000,
        one.principal_type,
        one.principal_id,
        one.resource_type,
        one.resource_id,
        one.operation,
        one.workspace,
        one.decision == "ALLOW",
        _level(one.metadata.get("required_level", "")),
        (bool(one.rule_id) or one.fallback_applied) and _BY_CREDENTIAL not in one.metadata.get("reason", ""),
        tuple(json.loads(groups)) if groups else (),
        subject,
        max(1, int(one.metadata.get("repeated", "1"))),
    )


def _level(text: str) -> AccessLevel:
    return AccessLevel(int(text)) if text.isdecimal() and int(text) in set(AccessLevel) else AccessLevel.NONE


# -- export ----------------------------------------------------------------------------------------


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what a new gateway has.")
@source_options
def export(source: AccessSource, everything: bool) -> None:
    """Print the rules as a policy file.

    Those with which the gateway began are left out: they are the base of the file.
    """
    state, fallbacks = source.run(_state_and_fallbacks)
    document: dict[str, Any] = {"version": 1, "base": _base_of(fallbacks)}
    if everything:
        document["base"] = NO_BASE
    for kind in ("role", "group"):
        groups = {
            name: _without_empty({"description": text}) | {"members": _members(state, kind, name, everything)}
            for (of, name), text in sorted(state.groups.items())
            if of == kind
        }
        if not everything:
            groups = {name: one for name, one in groups.items() if one["members"] or name != ADMINISTRATORS}
        document[f"{kind}s"] = groups
    document["rules"] = [
        _without_empty(
            {
                "principal": principal_of(one.principal_type, one.principal_id),
                "level": one.level.name.lower(),
                "resource": resource_of(one.resource_type, one.resource_id),
                "reason": one.reason,
                "expires": moment_text(one.expires_ms) if one.expires_ms else "",
            }
        )
        for one in state.rules.values()
        if everything or one.granted_by != SYSTEM
    ]
    document["fallbacks"] = {
        one.rule_id: level_name(one.access_level) for one in fallbacks if everything or one.granted_by != SYSTEM
    }
    document["locks"] = [
        _without_empty(
            {
                "pattern": one.pattern,
                "reason": one.reason,
                "expires": moment_text(one.expires_ms) if one.expires_ms else "",
            }
        )
        for one in state.locks
    ]
    say(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120).rstrip(), lines=True)


async def _state_and_fallbacks(ask: Ask) -> tuple[AccessState, list[pb.ACLRuleInfo]]:
    return await read_state(ask), await list_all(ask, pb.ACLRuleFilter(resource_type="fallback"))


def _base_of(fallbacks: list[pb.ACLRuleInfo]) -> str:
    """Return with which rules a gateway began: only the open ones have fallbacks."""
    return OPEN if any(one.granted_by == SYSTEM for one in fallbacks) else CLOSED


def _members(state: AccessState, kind: str, name: str, everything: bool) -> list[Any]:
    return [
        {"member": principal_of(one.member_type, one.member_id), "expires": moment_text(one.expires_ms)}
        if one.expires_ms
        else principal_of(one.member_type, one.member_id)
        for one in state.members.values()
        if (one.kind, one.name) == (kind, name) and (everything or one.granted_by != SYSTEM)
    ]


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}
