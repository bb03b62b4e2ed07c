"""`aether kv`: the key-value store from the shell."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import made_up, parse_identity
from aether_trio.cli.options import Target, client_options
from aether_trio.cli.output import print_bytes, print_json, print_table, run_client, say
from aether_trio.cli.session import ClientSession, open_session
from aether_trio.model.identity import Identity, Kind
from aether_trio.wire.pb import aether_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])

SCOPES: Final = {
    "global": pb.KVOperation.GLOBAL,
    "workspace": pb.KVOperation.WORKSPACE,
    "user": pb.KVOperation.USER_SHARED,
    "user-workspace": pb.KVOperation.USER_WORKSPACE_SHARED,
    "own": pb.KVOperation.GLOBAL_EXCLUSIVE,
    "own-workspace": pb.KVOperation.WORKSPACE_EXCLUSIVE,
    "own-user": pb.KVOperation.USER,
    "own-user-workspace": pb.KVOperation.USER_WORKSPACE,
}
_PAGE: Final = 500
_FAR: Final = 2**63 - 1  # a bound that no counter reaches


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key lies, and who asks for it."""

    target: Target
    identity: Identity
    scope: str
    workspace: str
    user: str

    def operation(self, op: pb.KVOperation.OpType.ValueType, key: str, **fields: Any) -> pb.UpstreamMessage:
        return pb.UpstreamMessage(
            kv_op=pb.KVOperation(
                op=op, scope=SCOPES[self.scope], key=key, user_id=self.user, workspace=self.workspace, **fields
            )
        )


@click.group(
    name="kv",
    epilog="""
\b
Examples:
  aether kv put greeting hello
  aether kv get greeting
  aether kv list --prefix gre
  aether kv incr visits
  aether kv put lock me --if-absent --ttl 30
  aether kv get state --scope own --as sv::billing::1
""",
)
def command() -> None:
    """Read and write the key-value store.

    A key lies in a scope: `global`, `workspace` (the default), `user` or `user-workspace` are shared by all; the `own`
    scopes belong to one implementation and specifier, so name it with --as.
    """


def place_options(function: F) -> F:
    """--scope, --workspace, --user, --as and the client options, as `place`."""

    @click.option("--scope", type=click.Choice(list(SCOPES)), default="workspace", show_default=True)
    @click.option("--workspace", default="default", show_default=True, envvar="AETHER_WORKSPACE", help="The workspace.")
    @click.option("--user", default="", metavar="USER_ID", help="The user, for the user scopes.")
    @click.option("--as", "who", metavar="IDENTITY", help="Who asks.  [default: a made-up service]")
    @client_options
    @functools.wraps(function)
    def wrapper(target: Target, scope: str, workspace: str, user: str, who: str | None, **kwargs: Any) -> Any:
        if "user" in scope and not user:
            raise click.UsageError(f"the scope {scope} needs --user USER_ID")
        if scope.startswith("own") and not who:
            raise click.UsageError(
                f"the scope {scope} belongs to somebody: name them with --as, such as sv::billing::1"
            )
        if "workspace" not in scope:
            workspace = ""
        identity = parse_identity(who) if who else made_up(Kind.SERVICE)
        return function(place=Place(target, identity, scope, workspace, user), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


def _ask(place: Place, message: pb.UpstreamMessage) -> pb.KVResponse:
    async def ask() -> pb.KVResponse:
        async with open_session(place.target, place.identity) as session:
            return (await session.request(message)).kv

    return run_client(ask)


@command.command()
@click.argument("key")
@place_options
def get(place: Place, key: str) -> None:
    """Print the value of KEY. Exit code 1 when there is none."""

    async def ask() -> tuple[bytes, bool]:
        async with open_session(place.target, place.identity) as session:
            value = (await session.request(place.operation(pb.KVOperation.GET, key))).kv.value
            return value, bool(value) or await _exists(session, place, key)

    value, found = run_client(ask)
    if not found:
        raise exits.CliError(f"there is no key {key!r} in the scope {place.scope}")
    print_bytes(value)


async def _exists(session: ClientSession, place: Place, key: str) -> bool:
    """A GET of nothing answers as a GET of an empty value does, so ask for the name: it is the first of its prefix."""
    answer = await session.request(place.operation(pb.KVOperation.LIST, key, limit=1))
    return key in answer.kv.keys


@command.command()
@click.argument("key")
@click.argument("value", metavar="VALUE|-")
@click.option("--ttl", type=click.IntRange(1, _FAR), metavar="SECONDS", help="Forget it after this long.")
@click.option("--if-absent", is_flag=True, help="Only when there is no such key.")
@click.option("--if-equals", metavar="VALUE", help="Only when it has this value now.")
@place_options
def put(place: Place, key: str, value: str, ttl: int | None, if_absent: bool, if_equals: str | None) -> None:
    """Set KEY to VALUE; - reads standard input. Exit code 1 when a condition did not hold."""
    if if_absent and if_equals is not None:
        raise click.UsageError("--if-absent and --if-equals exclude each other.")
    data = sys.stdin.buffer.read() if value == "-" else value.encode()
    if if_absent:
        answer = _ask(place, place.operation(pb.KVOperation.SET_NX, key, value=data, ttl=ttl or 0))
        _applied(answer, f"{key!r} exists already")
    elif if_equals is not None:
        expected = if_equals.encode()
        message = place.operation(
            pb.KVOperation.COMPARE_AND_SET, key, value=data, expected_value=expected, ttl=ttl or 0
        )
        _applied(_ask(place, message), f"{key!r} has another value")
    else:
        _ask(place, place.operation(pb.KVOperation.PUT, key, value=data, ttl=ttl or 0))
    say(f"put {key} ({len(data)} bytes)")


def _applied(answer: pb.KVResponse, otherwise: str) -> None:
    if not answer.applied:
        raise exits.CliError(f"nothing changed: {otherwise}")


@command.command(name="list")
@click.option("--prefix", default="", help="Only keys that begin with this.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: key to value (text; bytes that are none as {base64})."
)
@place_options
def list_(place: Place, prefix: str, limit: int | None, as_json: bool) -> None:
    """List keys and values."""

    async def ask() -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        cursor = ""
        async with open_session(place.target, place.identity) as session:
            while limit is None or len(found) < limit:
                size = min(_PAGE, limit - len(found)) if limit else _PAGE
                message = place.operation(pb.KVOperation.LIST, prefix, limit=size, cursor=cursor)
                page = (await session.request(message)).kv
                found.update({key: page.kv_map[key] for key in page.keys})
                cursor = page.next_cursor
                if not page.has_more or not cursor:
                    break
        return found

    found = run_client(ask)
    if as_json:
        print_json({key: _json_value(value) for key, value in found.items()}, indent=2)
        return
    print_table(
        ("key", "bytes", "value"), [(key, str(len(value)), _short(value)) for key, value in found.items()], "no keys"
    )


def _json_value(value: bytes) -> Any:
    import base64

    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _short(value: bytes) -> str:
    text = value.decode(errors="backslashreplace")
    return text if len(text) <= 80 else text[:77] + "..."


@command.command()
@click.argument("key")
@click.option("--if-equals", metavar="VALUE", help="Only when it has this value now.")
@place_options
def delete(place: Place, key: str, if_equals: str | None) -> None:
    """Delete KEY. It is no error when there is none."""
    if if_equals is None:
        _ask(place, place.operation(pb.KVOperation.DELETE, key))
    else:
        message = place.operation(pb.KVOperation.COMPARE_AND_DELETE, key, expected_value=if_equals.encode())
        _applied(_ask(place, message), f"{key!r} has another value, or none")
    say(f"deleted {key}")


@command.command()
@click.argument("key")
@click.option("--by", type=click.IntRange(1, _FAR), default=1, show_default=True, help="How much.")
@click.option("--max", "bound", type=click.IntRange(-_FAR, _FAR), help="Not beyond this.")
@place_options
def incr(place: Place, key: str, by: int, bound: int | None) -> None:
    """Add to the counter KEY and print it. A missing key counts as 0."""
    _count(place, pb.KVOperation.INCREMENT, pb.KVOperation.INCREMENT_IF, key, by, bound, _FAR, "over --max")


@command.command()
@click.argument("key")
@click.option("--by", type=click.IntRange(1, _FAR), default=1, show_default=True, help="How much.")
@click.option("--min", "bound", type=click.IntRange(-_FAR, _FAR), help="Not below this.")
@place_options
def decr(place: Place, key: str, by: int, bound: int | None) -> None:
    """Subtract from the counter KEY and print it. A missing key counts as 0."""
    _count(place, pb.KVOperation.DECREMENT, pb.KVOperation.DECREMENT_IF, key, by, bound, -_FAR, "under --min")


def _count(
    place: Place,
    plain: pb.KVOperation.OpType.ValueType,
    conditional: pb.KVOperation.OpType.ValueType,
    key: str,
    by: int,
    bound: int | None,
    no_bound: int,
    otherwise: str,
) -> None:
    if by == 1 and bound is None:
        answer = _ask(place, place.operation(plain, key))
    else:
        # Only the conditional form takes a step other than 1.
        guard = no_bound if bound is None else bound
        answer = _ask(place, place.operation(conditional, key, delta_value=by, guard_value=guard))
        _applied(answer, f"{answer.counter_value} would go {otherwise}")
    say(str(answer.counter_value))


@command.command()
@click.argument("key")
@click.argument("member", metavar="MEMBER")
@click.option("--ttl", type=click.IntRange(1, _FAR), metavar="SECONDS", help="Forget the set after this long.")
@place_options
def add(place: Place, key: str, member: str, ttl: int | None) -> None:
    """Add MEMBER to the set KEY and print how many it has."""
    answer = _ask(place, place.operation(pb.KVOperation.SET_ADD, key, value=member.encode(), ttl=ttl or 0))
    say(str(answer.counter_value))


@command.command()
@click.argument("key")
@place_options
def card(place: Place, key: str) -> None:
    """Print how many members the set KEY has."""
    say(str(_ask(place, place.operation(pb.KVOperation.SET_CARD, key)).counter_value))
