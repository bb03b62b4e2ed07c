"""`aether tokens`: makes, lists and revokes API tokens."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.ids import chosen, is_whole
from aether_trio.cli.options import GatewayTarget, load, settings_options
from aether_trio.cli.output import print_json, print_table, run_client, say, warn_unconfirmed
from aether_trio.cli.records import plain
from aether_trio.client.operations.records import read
from aether_trio.client.operations.tokens import Token, TokenPage
from aether_trio.model.errors import RequestError
from aether_trio.model.identity import SEPARATOR, Identity, PrincipalType
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.wire.pb import aether_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_PAGE: Final = 500
_OFFLINE_HELP: Final = (
    "Work on the data of --config (or of ./aether-data) without a gateway; it must not run on files. Audited."
)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the tokens are: behind a gateway, or in the databases of settings."""

    target: GatewayTarget
    who: Identity
    offline: bool
    config_file: str | None
    sets: tuple[str, ...]

    def run(self, online: Callable[[Any], Awaitable[T]], offline: Callable[..., Awaitable[T]]) -> T:
        """Call `online` with the client's tokens, or `offline` with access and keys."""
        if not self.offline:
            result: T = run_client(_online, self.target, self.who, online)
            return result
        settings = load(self.config_file, {}, self.sets).settings
        from aether_trio.gateway.offline import open_offline
        from aether_trio.services.tokens import read_hmac_keys

        async def main() -> T:
            async with open_offline(settings) as access:
                return await offline(access, read_hmac_keys(settings.auth))

        try:
            return trio.run(main)
        except* (StorageSetupError, StorageUnavailable) as group:
            raise exits.CliError(str(exits.first_of(group)), exits.SETTINGS, lines=True) from None
        except* (RequestError, LookupError) as group:
            raise exits.CliError(str(exits.first_of(group)), lines=True) from None
        except* OSError as group:
            error = exits.first_of(group)
            raise exits.CliError(f"{error.filename}: {error.strerror}", exits.SETTINGS) from None


async def _online(target: GatewayTarget, who: Identity, ask: Callable[[Any], Awaitable[T]]) -> T:
    async with open_client(target, who) as client:
        return await ask(client.tokens.within(None))


def _source_options(function: F) -> F:
    """Add the options of a gateway's client and of offline work, as `source`."""

    @click.option("--offline", is_flag=True, help=_OFFLINE_HELP)
    @settings_options
    @access_options
    @functools.wraps(function)
    def wrapper(
        target: GatewayTarget,
        who: Identity,
        offline: bool,
        config_file: str | None,
        sets: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        return function(source=_Source(target, who, offline, config_file, sets), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


@click.group(
    name="tokens",
    epilog="""
\b
Examples:
  aether tokens create ci --principal-type agent --workspace 'prod*'
  aether tokens create alice --principal-type user --principal-id alice --scope connect --scope level:READWRITE
  aether tokens list
  aether tokens revoke TOKEN_ID
  aether tokens create rescue --principal-type user --principal-id admin --offline --config aether/aether.yaml
""",
)
def command() -> None:
    """Make, list and revoke API tokens, which let in participants.

    Tokens are in the gateway's database, unlike the keys of the settings file: a revoked one ends
    its sessions on every node at once. A token is no wider than its maker.
    """


@command.command()
@click.argument("name")
@click.option(
    "--principal-type", required=True, type=click.Choice([one.type_name for one in PrincipalType]),
    help="The kind of principal that it lets in.",
)  # fmt: skip
@click.option(
    "--principal-id", default="", metavar="ID",
    help="Whom it lets in: a user's id, which a token for users needs, or a whole identity such as ag::prod::echo::1.",
)  # fmt: skip
@click.option(
    "--workspace", "workspaces", multiple=True, metavar="PATTERN",
    help="A workspace that it reaches; *, ? and [...] are wildcards. May be repeated. Default: all.",
)  # fmt: skip
@click.option(
    "--scope", "scopes", multiple=True, metavar="SCOPE",
    help="connect, level:READ (or another level), identity:PATTERN. May be repeated. Default: connect.",
)  # fmt: skip
@click.option(
    "--expires-in-hours",
    type=click.IntRange(1),
    metavar="N",
    help="It ends after so many whole hours.  [default: never]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {token, secret}.")
@_source_options
def create(
    source: _Source,
    name: str,
    principal_type: str,
    principal_id: str,
    workspaces: tuple[str, ...],
    scopes: tuple[str, ...],
    expires_in_hours: int | None,
    as_json: bool,
) -> None:
    """Make a token. Prints its secret once."""
    if principal_type == "user" and not principal_id:
        raise click.UsageError("a token for a user needs --principal-id, the user's id.")
    wanted = pb.TokenCreateRequest(
        name=name,
        principal_type=principal_type,
        workspace_patterns=workspaces,
        scopes=scopes,
        expires_in_hours=expires_in_hours or 0,
        created_by=principal_id,
    )

    async def online(tokens: Any) -> tuple[Token, str]:
        made = await tokens.create(
            name,
            principal_type=principal_type,
            principal_id=principal_id,
            workspace_patterns=workspaces,
            scopes=scopes,
            expires_in_hours=expires_in_hours or 0,
        )
        return made.token, made.secret

    async def offline(access: Any, keys: Any) -> tuple[Token, str]:
        from aether_trio.cli.offline_tokens import make_offline
        from aether_trio.services.tokens.service import token_info

        token, secret = await make_offline(access, keys, wanted)
        return read(Token, token_info(token)), secret

    token, secret = source.run(online, offline)
    if as_json:
        print_json({"token": plain(token), "secret": secret})
        return
    say("The secret, shown this once:\n", err=True, lines=True)
    say(secret)
    say(f"\nIts id, to revoke it: {token.id}", err=True, lines=True)
    say("Clients show it as the credential api_key (SDK: Credentials.api_key, shell: AETHER_API_KEY).", err=True)


@command.command("list")
@click.option("--revoked", is_flag=True, help="Show revoked tokens too.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@_source_options
def list_tokens(source: _Source, revoked: bool, as_json: bool) -> None:
    """Show the tokens, newest first, without their secrets."""
    found = _tokens(source, revoked)
    if as_json:
        print_json([plain(one) for one in found], indent=2)
        return
    print_table(
        ("id", "name", "principal", "workspaces", "scopes", "ends", "last used"),
        [
            (
                one.id,
                one.name,
                one.principal_type if _is_for_all(one) else f"{one.principal_type} {one.created_by}",
                " ".join(one.workspace_patterns),
                " ".join(one.scopes),
                "revoked" if one.revoked else _time(one.expires_at) or "never",
                _time(one.last_used_at) or "never",
            )
            for one in found
        ],
        "there is no token; make one with `aether tokens create`",
        whole=("id", "name"),
    )


def _tokens(source: _Source, revoked: bool) -> list[Token]:
    async def online(tokens: Any) -> list[Token]:
        return await _all_pages(lambda offset: tokens.list(include_revoked=revoked, limit=_PAGE, offset=offset))

    async def offline(access: Any, keys: Any) -> list[Token]:
        from aether_trio.cli.offline_tokens import list_offline
        from aether_trio.services.tokens.service import token_info

        async def page(offset: int) -> TokenPage:
            found, total = await list_offline(access, revoked=revoked, limit=_PAGE, offset=offset)
            return TokenPage(tuple(read(Token, token_info(one)) for one in found), total)

        return await _all_pages(page)

    return source.run(online, offline)


def _token_id_of(source: _Source, given: str) -> str:
    """Return the id of the token whose id begins with `given`. Raises CliError."""
    if is_whole(given):
        return given
    listed = {one.id: f"{one.principal_type} {one.name}" for one in _tokens(source, revoked=True)}
    if given in listed:
        return given
    return chosen(given, "token", {name: about for name, about in listed.items() if name.startswith(given)})


def _is_for_all(token: Token) -> bool:
    """Whether a token is for all principals of its type: its id binds none."""
    return token.principal_type != "user" and SEPARATOR not in token.created_by


async def _all_pages(page: Callable[[int], Awaitable[TokenPage]]) -> list[Token]:
    found: list[Token] = []
    while True:
        one = await page(len(found))
        found += one.tokens
        if not one.tokens or len(found) >= one.total:
            return found


@command.command()
@click.argument("token_id")
@_source_options
def show(source: _Source, token_id: str) -> None:
    """Show one token as a JSON object, without its secret."""
    token_id = _token_id_of(source, token_id)

    async def offline(access: Any, keys: Any) -> Token:
        from aether_trio.cli.offline_tokens import find_offline
        from aether_trio.services.tokens.service import token_info

        token = await find_offline(access, token_id)
        if token is None:
            raise LookupError(f"there is no API token with the id {token_id!r}")
        return read(Token, token_info(token))

    print_json(plain(source.run(lambda tokens: tokens.get(token_id), offline)), indent=2)


@command.command()
@click.argument("token_id")
@_source_options
def revoke(source: _Source, token_id: str) -> None:
    """Revoke a token and end its sessions. Its record is kept."""
    token_id = _token_id_of(source, token_id)
    message = _end(source, token_id, delete=False)
    say(f"{token_id} is revoked")
    warn_unconfirmed(message)


@command.command()
@click.argument("token_id")
@_source_options
def delete(source: _Source, token_id: str) -> None:
    """Delete a token and end its sessions. Only the audit log keeps a record of it."""
    token_id = _token_id_of(source, token_id)
    message = _end(source, token_id, delete=True)
    say(f"{token_id} is deleted")
    warn_unconfirmed(message)


def _end(source: _Source, token_id: str, *, delete: bool) -> str:
    """End a token; return the gateway's words."""

    async def offline(access: Any, keys: Any) -> str:
        from aether_trio.cli.offline_tokens import end_offline

        if not await end_offline(access, token_id, delete=delete):
            raise LookupError(f"there is no API token with the id {token_id!r}")
        return ""

    message: str = source.run(lambda tokens: tokens.delete(token_id) if delete else tokens.revoke(token_id), offline)
    return message


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
