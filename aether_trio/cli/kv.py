"""`aether kv`: the key-value store from the shell."""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import made_up, parse_identity
from aether_trio.cli.options import GatewayTarget, client_options, workspace_option
from aether_trio.cli.output import print_bytes, print_json, print_table, run_client, say
from aether_trio.client.operations import KeyPlace, Scope
from aether_trio.client.operations.kv import Kv
from aether_trio.model.identity import Identity, Kind

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

SCOPES: Final = {one.name.lower().replace("_", "-"): one for one in Scope if one}
"""By the names of the client and of rules on `kv_scope`, with dashes."""
_OWN: Final = frozenset({"global-exclusive", "workspace-exclusive", "user", "user-workspace"})
"""Scopes that belong to one identity."""
_PAGE: Final = 500
_FAR: Final = 2**63 - 1  # a bound that no counter reaches


@dataclass(frozen=True, slots=True)
class KeySpace:
    """The scope in which a command's keys lie, and the identity that asks for them."""

    target: GatewayTarget
    identity: Identity
    scope: str
    workspace: str
    user_id: str

    def run(self, ask: Callable[[Kv, KeyPlace], Awaitable[T]]) -> T:
        """Connect and call `ask` with KV operations and the scope. Raises CliError."""
        place = KeyPlace(scope=SCOPES[self.scope], user_id=self.user_id, workspace=self.workspace)

        async def connected() -> T:
            async with open_client(self.target, self.identity) as client:
                return await ask(client.kv.within(None), place)

        return run_client(connected)


@click.group(
    name="kv",
    epilog="""
\b
Examples:
  aether kv put greeting hello
  aether kv get greeting
  aether kv list --prefix gre
  aether kv increment visits
  aether kv put lock me --if-absent --ttl 30
  aether kv get state --scope global-exclusive --as sv::billing::1
""",
)
def command() -> None:
    """Read and write the key-value store.

    A key lies in a scope. `global`, `workspace` (the default), `user-shared` and
    `user-workspace-shared` are shared by all. `global-exclusive`, `workspace-exclusive`, `user` and
    `user-workspace` belong to one implementation and specifier, so name it with --as.
    """


def place_options(function: F) -> F:
    """Add the options of a KV command, which gets them as a KeySpace `keys`."""

    @click.option("--scope", type=click.Choice(list(SCOPES)), default="workspace", show_default=True)
    @workspace_option
    @click.option("--user-id", default="", metavar="ID", help="The user, for the user scopes.")
    @click.option("--as", "who", metavar="IDENTITY", help="Who asks.  [default: a made-up service]")
    @client_options
    @functools.wraps(function)
    def wrapper(target: GatewayTarget, scope: str, workspace: str, user_id: str, who: str | None, **kwargs: Any) -> Any:
        if "user" in scope and not user_id:
            raise click.UsageError(f"the scope {scope} needs --user-id ID")
        if scope in _OWN and not who:
            raise click.UsageError(
                f"the scope {scope} belongs to one identity: name it with --as, such as sv::billing::1"
            )
        if "workspace" not in scope:
            workspace = ""
        identity = parse_identity(who) if who else made_up(Kind.SERVICE)
        return function(keys=KeySpace(target, identity, scope, workspace, user_id), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


@command.command()
@click.argument("key")
@place_options
def get(keys: KeySpace, key: str) -> None:
    """Print the value of KEY. Exit code 1 when there is none."""

    async def ask(kv: Kv, place: KeyPlace) -> bytes | None:
        value = await kv.get(key, **place)
        # A missing key reads as empty. A list by this prefix begins with the key, if there is one.
        there = value or key in (await kv.list(key, limit=1, **place)).entries
        return value if there else None

    value = keys.run(ask)
    if value is None:
        raise exits.CliError(f"there is no key {key!r} in the scope {keys.scope}")
    print_bytes(value)


@command.command()
@click.argument("key")
@click.argument("value", metavar="VALUE|-")
@click.option("--ttl", type=click.IntRange(1, _FAR), metavar="SECONDS", help="Forget it after this long.")
@click.option("--if-absent", is_flag=True, help="Only when there is no such key.")
@click.option("--if-equals", metavar="VALUE", help="Only when it has this value now.")
@place_options
def put(keys: KeySpace, key: str, value: str, ttl: int | None, if_absent: bool, if_equals: str | None) -> None:
    """Set KEY to VALUE; - reads standard input. Exit code 1 if a condition fails."""
    if if_absent and if_equals is not None:
        raise click.UsageError("--if-absent and --if-equals exclude each other.")
    data = sys.stdin.buffer.read() if value == "-" else value.encode()
    expected = None if if_equals is None else if_equals.encode()

    async def ask(kv: Kv, place: KeyPlace) -> None:
        if if_absent:
            _check_applied(await kv.put_if_absent(key, data, ttl_s=ttl or 0, **place), f"{key!r} exists already")
        elif expected is not None:
            swap = await kv.compare_and_set(key, expected, data, ttl_s=ttl or 0, **place)
            _check_applied(swap.applied, f"{key!r} has another value")
        else:
            await kv.put(key, data, ttl_s=ttl or 0, **place)

    keys.run(ask)
    say(f"put {key} ({len(data)} bytes)")


def _check_applied(applied: bool, otherwise: str) -> None:
    if not applied:
        raise exits.CliError(f"the condition on the key failed, so nothing changed: {otherwise}")


@command.command(name="list")
@click.option("--prefix", default="", help="Only keys that begin with this.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: key to value (text; bytes that are none as {base64})."
)
@place_options
def list_(keys: KeySpace, prefix: str, limit: int | None, as_json: bool) -> None:
    """List keys and values."""

    async def ask(kv: Kv, place: KeyPlace) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        cursor = ""
        while limit is None or len(found) < limit:
            size = min(_PAGE, limit - len(found)) if limit else _PAGE
            page = await kv.list(prefix, limit=size, cursor=cursor, **place)
            found.update(page.entries)
            cursor = page.next_cursor
            if not cursor:
                break
        return found

    found = keys.run(ask)
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
def delete(keys: KeySpace, key: str, if_equals: str | None) -> None:
    """Delete KEY. It is no error when there is none."""

    async def ask(kv: Kv, place: KeyPlace) -> None:
        if if_equals is None:
            await kv.delete(key, **place)
        else:
            swap = await kv.compare_and_delete(key, if_equals.encode(), **place)
            _check_applied(swap.applied, f"{key!r} has another value, or none")

    keys.run(ask)
    say(f"deleted {key}")


@command.command()
@click.argument("key")
@click.option("--delta", type=click.IntRange(1, _FAR), default=1, show_default=True, help="How much.")
@click.option("--ceiling", "bound", type=click.IntRange(-_FAR, _FAR), help="Not beyond this.")
@place_options
def increment(keys: KeySpace, key: str, delta: int, bound: int | None) -> None:
    """Add to the counter KEY and print it. A missing key counts as 0."""

    async def ask(kv: Kv, place: KeyPlace) -> int:
        if delta == 1 and bound is None:
            return await kv.increment(key, **place)
        ceiling = _FAR if bound is None else bound
        counter = await kv.increment_if(key, ceiling=ceiling, delta=delta, **place)
        _check_applied(counter.applied, f"{counter.value} would go over --ceiling")
        return counter.value

    say(str(keys.run(ask)))


@command.command()
@click.argument("key")
@click.option("--delta", type=click.IntRange(1, _FAR), default=1, show_default=True, help="How much.")
@click.option("--floor", "bound", type=click.IntRange(-_FAR, _FAR), help="Not below this.")
@place_options
def decrement(keys: KeySpace, key: str, delta: int, bound: int | None) -> None:
    """Subtract from the counter KEY and print it. A missing key counts as 0."""

    async def ask(kv: Kv, place: KeyPlace) -> int:
        if delta == 1 and bound is None:
            return await kv.decrement(key, **place)
        floor = -_FAR if bound is None else bound
        counter = await kv.decrement_if(key, floor=floor, delta=delta, **place)
        _check_applied(counter.applied, f"{counter.value} would go under --floor")
        return counter.value

    say(str(keys.run(ask)))


@command.command("set-add")
@click.argument("key")
@click.argument("member", metavar="MEMBER")
@click.option("--ttl", type=click.IntRange(1, _FAR), metavar="SECONDS", help="Forget the set after this long.")
@place_options
def set_add(keys: KeySpace, key: str, member: str, ttl: int | None) -> None:
    """Add MEMBER to the set KEY and print how many members it has."""
    added = keys.run(lambda kv, place: kv.set_add(key, member.encode(), ttl_s=ttl or 0, **place))
    say(str(added.size))


@command.command("set-size")
@click.argument("key")
@place_options
def set_size(keys: KeySpace, key: str) -> None:
    """Print how many members the set KEY has."""
    say(str(keys.run(lambda kv, place: kv.set_size(key, **place))))
