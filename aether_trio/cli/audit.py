"""`aether audit`: searches the audit log, follows it, checks it, exports it."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.grants import grant_id_of
from aether_trio.cli.identities import access_options
from aether_trio.cli.ids import chosen
from aether_trio.cli.options import GatewayTarget, load, settings_options
from aether_trio.cli.output import print_json, print_table, run_client, say, say_json
from aether_trio.model.identity import Identity

if TYPE_CHECKING:
    from aether_trio.client import Client
    from aether_trio.client.operations.audit import AuditEntry
    from aether_trio.services.audit.sources import StoredLog
    from aether_trio.services.audit.verify import Finding

F = TypeVar("F", bound=Callable[..., Any])

_PAGE: Final = 500
_POLL_S: Final = 1.0
_SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group(
    name="audit",
    epilog="""
\b
Examples:
  aether audit query --since 1h --failures
  aether audit query --workspace prod --actor ag::prod::buyer::1 --json | jq .operation
  aether audit tail --type authorization
  aether audit verify --data-dir /var/lib/aether
  aether audit verify --data-dir copy --heads heads-of-the-witness
  aether audit export --data-dir copy > rows.jsonl
""",
)
def command() -> None:
    """Search, follow, check and export the record of who did what.

    docs/audit.md says what is in it, and who can read and check what.
    """


# -- through a gateway -----------------------------------------------------------------------------


def filter_options(command: F) -> F:
    """Add the filters of a query, which the command gets as `wanted`."""

    @functools.wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        wanted = {name: kwargs.pop(name) for name in _FILTERS if name in kwargs}
        return command(wanted={name: value for name, value in wanted.items() if value}, **kwargs)

    options = [
        click.option(
            "--type", "event_type", default="", help="Such as connection, auth, message, kv, task or authorization."
        ),
        click.option("--operation", default="", help="Such as kv_put or connection_closed."),
        click.option("--actor", "actor_id", default="", help="Who did it: an identity, or a user's id."),
        click.option("--subject", "subject_id", default="", help="On whose authority."),
        click.option("--resource", "resource_id", default="", help="What it was done to."),
        click.option("--workspace", default="", help="Only this workspace; needed by all but administrators."),
        click.option("--grant", "authority_grant_id", default="", help="On the authority of this grant."),
        click.option("--failures", "only_failures", is_flag=True, help="Only what failed or was refused."),
    ]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]  # click replaces it anyway


_FILTERS: Final = (
    "event_type", "operation", "actor_id", "subject_id", "resource_id", "workspace", "authority_grant_id",
    "only_failures",
)  # fmt: skip


def moment(text: str, option: str) -> datetime:
    """Read a time: "10m", "2h", "7d" ago, or ISO 8601. Raises click.BadParameter."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is not None:
        return datetime.now(UTC) - timedelta(seconds=int(found[1]) * _SPANS[found[2]])
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time such as 2h or 2026-11-29T12:00", param_hint=option) from None


@command.command()
@filter_options
@click.option("--since", metavar="TIME", help="From this time on: 10m, 2h, 7d ago, or 2026-11-29T12:00.")
@click.option("--until", metavar="TIME", help="Up to this time.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@access_options
def query(
    target: GatewayTarget,
    who: Identity,
    wanted: dict[str, Any],
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show entries that fit all filters, the newest first."""
    times = {
        "since": moment(since, "--since") if since else None,
        "until": moment(until, "--until") if until else None,
    }
    entries, total = run_client(_query, target, who, wanted | times, limit)
    if as_json:
        for entry in entries:
            say_json(_entry_json(entry))
        return
    columns = ("row", "time", "type", "operation", "actor", "resource", "workspace", "result")
    rows = [(str(entry.audit_id), *_cells(entry)) for entry in entries]
    print_table(columns, rows, "no entry fits", whole=("row", "actor", "resource", "workspace"))
    if total > len(entries):
        say(f"{len(entries)} of {total} entries; --limit shows more", err=True)


async def _complete(client: Client, wanted: dict[str, Any]) -> None:
    """Complete the id of the grant that a filter names."""
    if given := wanted.get("authority_grant_id"):
        wanted["authority_grant_id"] = await grant_id_of(client.grants.within(None), given)


async def _query(
    target: GatewayTarget, who: Identity, wanted: dict[str, Any], limit: int
) -> tuple[list[AuditEntry], int]:
    entries: list[AuditEntry] = []
    async with open_client(target, who) as client:
        audit = client.audit.within(None)
        await _complete(client, wanted)
        while True:
            page = await audit.query(**wanted, limit=min(_PAGE, limit - len(entries)), offset=len(entries))
            entries += page.entries
            if len(entries) >= min(limit, page.total) or not page.entries:
                return entries, page.total


@command.command()
@filter_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="Stop after so many.")
@access_options
def tail(target: GatewayTarget, who: Identity, wanted: dict[str, Any], as_json: bool, limit: int | None) -> None:
    """Show new entries as they are recorded, until Ctrl-C."""
    run_client(_tail, target, who, wanted, as_json, limit)


async def _tail(target: GatewayTarget, who: Identity, wanted: dict[str, Any], as_json: bool, limit: int | None) -> None:
    import trio

    seen: dict[int, datetime] = {}
    count = 0
    start = datetime.now(UTC)
    async with open_client(target, who) as client:
        audit = client.audit.within(None)
        await _complete(client, wanted)
        while True:
            fresh: list[AuditEntry] = []
            while True:
                page = await audit.query(**wanted, since=start, limit=_PAGE, offset=len(fresh))
                fresh += page.entries
                if not page.entries or len(fresh) >= page.total:
                    break
            for entry in reversed(fresh):
                if entry.audit_id not in seen:
                    seen[entry.audit_id] = entry.timestamp or start
                    say_json(_entry_json(entry)) if as_json else say("  ".join(cell for cell in _cells(entry) if cell))
                    count += 1
                    if count == limit:
                        return
            if fresh:
                # Rows of other nodes may come a little late; what was shown is not shown again.
                newest = max(seen.values())
                start = max(start, newest - timedelta(seconds=5))
                seen = {row: at for row, at in seen.items() if at >= newest - timedelta(minutes=1)}
            await trio.sleep(_POLL_S)


def _entry_json(entry: AuditEntry) -> str:
    fields = asdict(entry)
    fields["timestamp"] = entry.timestamp.isoformat() if entry.timestamp is not None else None
    fields["metadata"] = json.loads(fields.pop("metadata_json") or "{}")
    return json.dumps(fields, ensure_ascii=False)


def _cells(entry: AuditEntry) -> tuple[str, ...]:
    when = entry.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S") if entry.timestamp is not None else ""
    count = json.loads(entry.metadata_json or "{}").get("count")
    operation = f"{entry.operation} x{count}" if isinstance(count, int) and count > 1 else entry.operation
    actor = entry.actor_id or entry.actor_type
    if entry.subject_id and entry.subject_id != entry.actor_id:
        actor = f"{actor} for {entry.subject_id}"
    result = "ok" if entry.success else f"failed: {entry.error_message}"
    return (when, entry.event_type, operation, actor, entry.resource_id, entry.workspace, result)


# -- on the database -------------------------------------------------------------------------------


def database_options(command: F) -> F:
    """Add the options that name a database, which the command gets as `log`."""

    @settings_options
    @click.option("--database", metavar="DSN", envvar="AETHER_STORAGE__DATABASE", help="postgresql://... of a cluster.")
    @click.option("--schema", metavar="NAME", envvar="AETHER_STORAGE__SCHEMA", help="Its schema.  [default: aether]")
    @click.option(
        "--data-dir",
        type=click.Path(file_okay=False),
        help="Data directory of a gateway, or a copy of one.  [default: ./aether-data]",
    )
    @functools.wraps(command)
    def wrapper(
        data_dir: str | None,
        database: str | None,
        schema: str | None,
        config_file: str | None,
        sets: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        if data_dir is not None and database is not None:
            raise click.UsageError("--data-dir and --database exclude each other.")
        flags = {"gateway.data_dir": data_dir, "storage.database": database, "storage.schema": schema}
        settings = load(config_file, {name: value for name, value in flags.items() if value is not None}, sets).settings
        storage = settings.storage

        def opened() -> AbstractContextManager[StoredLog]:
            from aether_trio.services.audit.sources import open_postgres_log, open_sqlite_log

            if storage.database and data_dir is None:
                return open_postgres_log(storage.database, storage.schema)
            return open_sqlite_log(Path(settings.gateway.data_dir) / "tasks.db")

        return command(log=_explained(opened), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


def _explained(opened: Callable[[], AbstractContextManager[StoredLog]]) -> AbstractContextManager[StoredLog]:
    """Turn a database that cannot be read into the failure of the command."""
    from aether_trio.storage.errors import StorageSetupError

    @contextmanager
    def manager() -> Iterator[StoredLog]:
        try:
            with opened() as log:
                yield log
        except StorageSetupError as error:
            raise exits.CliError(str(error), exits.SETTINGS) from None

    return manager()


@command.command()
@click.option(
    "--heads",
    "heads_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File of signed heads that was kept elsewhere (audit.heads_file); may be repeated.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME+ID+KEY",
    help="Trust this public key, and no other; may be repeated. `aether audit keys` prints them.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each finding.")
@database_options
def verify(
    log: AbstractContextManager[StoredLog], heads_files: Sequence[str], keys: Sequence[str], as_json: bool
) -> None:
    """Check that no row was changed, removed, inserted or moved.

    Reads the database itself, beside a running gateway or without one. Each row is compared with
    its tree, and each tree with all heads that were signed of it. Exit code 1 when something does
    not fit, with a line for each finding.

    The database alone cannot show that its end was cut off together with all heads of it. Give
    --heads with a file that its thief could not change, and --key with the keys that you trust.
    """
    from aether_trio.services.audit.checkpoints import NoteError, PublicKey, split_notes
    from aether_trio.services.audit.verify import Verification

    notes: list[str] = []
    for file in heads_files:
        with Path(file).open(encoding="utf-8", errors="replace") as lines:
            notes += split_notes(lines)
    try:
        trusted = [PublicKey.parse(key) for key in keys]
    except NoteError as error:
        raise click.BadParameter(str(error), param_hint="--key") from None
    with log as source:
        verification = Verification(source, notes, trusted)
        count = 0
        for finding in verification.run():
            count += 1
            _say_finding(finding, as_json)
        trees = len(source.trees)
    checked = f"{verification.rows} rows of {trees} trees, {verification.heads} heads"
    if count:
        raise exits.CliError(f"{count} findings in {checked}")
    if not as_json:
        say(f"ok: {checked}")


def _say_finding(finding: Finding, as_json: bool) -> None:
    if as_json:
        print_json(finding._asdict())
        return
    rows = f"row {finding.first}" if finding.first == finding.last else f"rows {finding.first} to {finding.last}"
    where = f"{finding.tree}, {rows}" if finding.first else finding.tree
    say(f"{finding.kind}  {where}: {finding.text}")


@command.command()
@click.option("--heads", "only_heads", is_flag=True, help="The signed heads instead, as audit.heads_file has them.")
@database_options
def export(log: AbstractContextManager[StoredLog], only_heads: bool) -> None:
    """Print all rows as JSON, one a line, tree by tree.

    Each has all its columns, the name of its tree, and the number and hash of its leaf.
    """
    from aether_trio.model.audit import MAX_LEAVES, audit_id, place_of
    from aether_trio.services.audit.trees import COLUMNS

    with log as source:
        if only_heads:
            for head in source.heads:
                say(head.note, lines=True)
            return
        origins = {tree.number: tree.origin for tree in source.trees}
        for number in source.tree_numbers():
            for rows in source.rows(audit_id(number, 0), audit_id(number, MAX_LEAVES - 1)):
                for row in rows:
                    fields = dict(zip(COLUMNS, row, strict=True))
                    fields |= {"tree": origins.get(number, ""), "leaf": place_of(row[0])[1]}
                    fields["success"] = bool(fields["success"])
                    # What was changed behind the gateway may be of any type, and no JSON.
                    with contextlib.suppress(ValueError, TypeError, RecursionError):
                        fields["metadata"] = json.loads(fields["metadata"])
                    say_json(json.dumps(fields, ensure_ascii=False, default=_hexadecimal))


def _hexadecimal(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@command.command()
@database_options
def keys(log: AbstractContextManager[StoredLog]) -> None:
    """Print the public keys of all trees, for `verify --key` and for witnesses."""
    from aether_trio.services.audit.checkpoints import PublicKey

    with log as source:
        for tree in source.trees:
            say(str(PublicKey(tree.origin, tree.public_key)))


_MOST_DIGITS: Final = 19


def _row_of(source: StoredLog, given: int) -> int:
    """Return the number of the row whose number begins with `given`. Raises CliError."""
    found: dict[str, str] = {}
    for zeros in range(_MOST_DIGITS - len(str(given)) + 1):
        if given * 10**zeros >= 2**63:
            break
        ends = source.ends(given * 10**zeros, min((given + 1) * 10**zeros, 2**63) - 1)
        if ends and zeros == 0:
            return given
        found |= {str(end): "" for end in ends or ()}
    return int(chosen(str(given), "row", found))


@command.command()
@click.argument("audit_id", type=click.IntRange(min=1))
@database_options
def prove(log: AbstractContextManager[StoredLog], audit_id: int) -> None:
    """Print the proof that a row is in its tree, as JSON.

    `leaf` are the bytes of the row, `proof` the hashes of an inclusion proof (RFC 9162), and `note`
    is the signed head that covers it. With the public key nothing else of this log is needed.
    """
    from aether_trio.services.audit.proofs import prove_row

    with log as source:
        try:
            proof = prove_row(source, _row_of(source, audit_id))
        except LookupError as error:
            raise exits.CliError(str(error)) from None
    print_json(proof, indent=2)
