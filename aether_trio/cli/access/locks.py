"""`aether access lock`, `unlock` and `locks`: the kill switch."""

from __future__ import annotations

import click

from aether_trio.cli import exits
from aether_trio.cli.access.arguments import END, until
from aether_trio.cli.access.asking import AccessSource, Ask, say_done, source_options
from aether_trio.cli.access.state import list_all
from aether_trio.cli.ids import chosen
from aether_trio.cli.output import print_json, print_table, say
from aether_trio.cli.records import iso_time
from aether_trio.model.access.spellings import SpellingError, moment_text, parse_principal
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation
_LOCK = "lock"


@click.command()
@click.argument("pattern")
@click.option("--reason", default="", help="Why; those who are locked are told.")
@click.option("--expires", type=END, metavar="2h|DATE", help="How long.  [default: until it is ended]")
@source_options
def lock(source: AccessSource, pattern: str, reason: str, expires: int | None) -> None:
    """Bar all participants whose identity matches.

    Their sessions end on every node, they cannot connect again, and no rule outvotes it. PATTERN is
    an identity or user, or has the wildcards * ? and [...]: 'ag::prod::*', user:mallory.
    """
    request = pb.ACLGrantRequest(
        principal_id=_pattern(pattern), resource_type=_LOCK, reason=reason, expires_at=expires or 0
    )
    answer = source.ask(Op(op=Op.GRANT, grant_request=request))
    say_done(answer.message)
    say(f"lock {answer.rule.rule_id}")


def _pattern(text: str) -> str:
    """Return the pattern of a lock: a user as user:ID, another as it is written."""
    try:
        kind, name = parse_principal(text)
    except SpellingError:
        return text
    if kind == "user" and not text.startswith("us::"):
        return text
    if text.startswith("us::") and text.count("::") == 1:
        return f"user:{name}"  # us::eve: all windows
    return name if text == f"{kind}:{name}" and kind not in {"group", "role"} else text


@click.command()
@click.argument("which", metavar="LOCK_ID|PATTERN")
@source_options
def unlock(source: AccessSource, which: str) -> None:
    """End a lock, by its id, or all locks with this pattern."""

    async def main(ask: Ask) -> list[str]:
        found = await list_all(ask, pb.ACLRuleFilter(resource_type=_LOCK))
        ids = [one.rule_id for one in found if which in {one.rule_id, one.principal_id}]
        ids = ids or [one.rule_id for one in found if one.principal_id == _pattern(which)]
        if not ids:
            beginning = {one.rule_id: one.principal_id for one in found if one.rule_id.startswith(which)}
            ids = [chosen(which, "lock", beginning)] if beginning else []
        if not ids:
            raise exits.CliError(f"there is no lock {which}; `aether access locks` shows them")
        return [(await ask(Op(op=Op.REVOKE, rule_id=one))).message for one in ids]

    for message in source.run(main):
        say_done(message)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@source_options
def locks(source: AccessSource, as_json: bool) -> None:
    """Show the locks, the oldest first."""
    found = source.run(lambda ask: list_all(ask, pb.ACLRuleFilter(resource_type=_LOCK)))
    rows = [
        {
            "lock_id": one.rule_id,
            "pattern": one.principal_id,
            "reason": one.reason,
            "locked_by": one.granted_by,
            "locked_at": iso_time(one.granted_at),
            "expires_at": iso_time(one.expires_at),
        }
        for one in found
    ]
    if as_json:
        print_json(rows, indent=2)
        return
    print_table(
        ("pattern", "until", "locked by", "since", "reason", "lock"),
        [
            (
                one.principal_id,
                until(one.expires_at),
                one.granted_by,
                moment_text(one.granted_at * 1000),
                one.reason,
                one.rule_id,
            )
            for one in found
        ],
        "nothing is locked",
        whole=("pattern", "lock"),
    )
