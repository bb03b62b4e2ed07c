"""`aether grants`: lists, shows and revokes authority grants."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar

import click

from aether_trio.cli.authority_texts import level_text, scope_text, state_of, when, who
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import parse_identity
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.options import GatewayTarget, client_options
from aether_trio.cli.output import print_facts, print_json, print_table, run_client, say, warn_unconfirmed
from aether_trio.cli.paging import in_pages
from aether_trio.cli.records import plain
from aether_trio.client.operations.grant_values import Grant
from aether_trio.client.operations.grants import Grants
from aether_trio.model.identity import Identity, IdentityError

F = TypeVar("F", bound=Callable[..., Any])


def person_options(function: F) -> F:
    """Add --as and the client options to a command of a person, as `target`, `asker`."""

    @click.option(
        "--as",
        "viewer",
        metavar="IDENTITY",
        help="Who asks: a user's window such as us::ann::1, or any participant.  [default: a window of your login]",
    )
    @client_options
    @wraps(function)
    def wrapper(target: GatewayTarget, viewer: str | None, **kwargs: Any) -> Any:
        return function(target=target, asker=parse_identity(viewer) if viewer else _own_window(), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


def _own_window() -> Identity:
    try:
        return Identity.user(getpass.getuser(), f"cli-{secrets.token_hex(4)}")
    except (IdentityError, KeyError, OSError):
        raise click.UsageError("say who asks, with --as us::USER::WINDOW") from None


@click.group(
    name="grants",
    epilog="""
\b
Examples:
  aether grants list
  aether grants list --mine --as ag::default::planner::1
  aether grants list --json | jq -r .[].grant_id
  aether grants show GRANT_ID
  aether grants revoke GRANT_ID
""",
)
def command() -> None:
    """List, show and revoke grants, by which one participant acts for another.

    A grant is seen by its subject, for whom is acted, by its issuer, and by its delegate, who acts.
    """


@command.command("list")
@click.option("--mine", is_flag=True, help="Those by which the caller acts, not those by which others act for it.")
@click.option("--all", "revoked_too", is_flag=True, help="Also those that were revoked.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@person_options
def list_grants(target: GatewayTarget, asker: Identity, mine: bool, revoked_too: bool, as_json: bool) -> None:
    """Show who acts for the caller, within which limits and how long."""
    grants = run_client(_list, target, asker, mine, revoked_too)
    if as_json:
        print_json([plain(one) for one in grants], indent=2)
        return
    now = datetime.now(UTC)
    print_table(
        ("grant", "delegate", "for", "level", "scope", "until", "state"),
        [
            (
                one.grant_id,
                who(one.delegate),
                who(one.subject),
                level_text(one.max_access_level),
                scope_text(one),
                when(one.expires_at),
                state_of(one, now),
            )
            for one in grants
        ],
        f"{asker} acts for no one" if mine else f"no one acts for {asker}",
        whole=("grant", "delegate", "for"),
    )


async def _list(target: GatewayTarget, asker: Identity, mine: bool, revoked_too: bool) -> list[Grant]:
    found: list[Grant] = []
    async with open_client(target, asker) as client:
        async for page in _pages(client.grants.within(None), mine, revoked_too):
            found += page
    return found


def _pages(grants: Grants, mine: bool, revoked_too: bool) -> AsyncIterator[Sequence[Grant]]:
    ask = grants.list_mine if mine else grants.list_on_me

    async def read(limit: int, offset: int) -> Sequence[Grant]:
        return (await ask(include_revoked=revoked_too, limit=limit, offset=offset)).grants

    return in_pages(read)


async def grant_id_of(grants: Grants, given: str) -> str:
    """Return the id of the grant that begins with `given`. Raises CliError."""

    async def listed() -> AsyncIterator[Sequence[Listed]]:
        for mine in (False, True):
            async for page in _pages(grants, mine, revoked_too=True):
                yield [(one.grant_id, f"{who(one.delegate)} for {who(one.subject)}") for one in page]

    return await full_id(given, "grant", listed())


@command.command()
@click.argument("grant_id")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@person_options
def show(target: GatewayTarget, asker: Identity, grant_id: str, as_json: bool) -> None:
    """Show all fields of a grant."""
    grant = run_client(_get, target, asker, grant_id)
    if as_json:
        print_json(plain(grant), indent=2)
        return
    print_facts([(name, text) for name, text in _lines(grant) if text])


def _lines(grant: Grant) -> list[tuple[str, str]]:
    return [
        ("grant", grant.grant_id),
        ("state", state_of(grant, datetime.now(UTC))),
        ("for", who(grant.subject)),
        ("delegate", who(grant.delegate)),
        ("issued by", who(grant.issued_by)),
        ("level", level_text(grant.max_access_level)),
        ("scope", scope_text(grant)),
        ("audience", f"{grant.audience_type} {grant.audience_id}"),
        ("until", when(grant.expires_at)),
        ("renewable until", when(grant.renewable_until)),
        ("passed on", f"{grant.remaining_hops} times at most" if grant.may_delegate else "not"),
        ("derived from", grant.parent_grant_id),
        ("root", grant.root_grant_id),
        ("reason", grant.reason),
        ("created", when(grant.created_at)),
        ("revoked", when(grant.revoked_at)),
        *((f"metadata {name}", text) for name, text in sorted(grant.metadata.items())),
    ]


async def _get(target: GatewayTarget, asker: Identity, grant_id: str) -> Grant:
    async with open_client(target, asker) as client:
        grants = client.grants.within(None)
        return await grants.get(await grant_id_of(grants, grant_id))


@command.command()
@click.argument("grant_ids", nargs=-1, required=True, metavar="GRANT_ID...")
@person_options
def revoke(target: GatewayTarget, asker: Identity, grant_ids: tuple[str, ...]) -> None:
    """Revoke grants, and all that were derived from them.

    When the command ends, they are in force on no node of the gateway, and the tasks that rest on
    them are cancelled. Nodes that have not confirmed it are named.
    """
    run_client(_revoke, target, asker, grant_ids)


async def _revoke(target: GatewayTarget, asker: Identity, grant_ids: tuple[str, ...]) -> None:
    async with open_client(target, asker) as client:
        grants = client.grants.within(None)
        for given in grant_ids:
            grant_id = await grant_id_of(grants, given)
            message = await grants.revoke(grant_id)
            say(f"{grant_id}  revoked")
            warn_unconfirmed(message)
