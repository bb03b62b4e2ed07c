"""`aether restore`: puts a backup into a data directory, all of it or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from aether_trio.cli import exits
from aether_trio.cli.backup import moment_text
from aether_trio.cli.options import load, settings_options
from aether_trio.cli.output import say, say_json
from aether_trio.cli.postgres_backup import restore_commands
from aether_trio.storage.backup import BackupError, restore
from aether_trio.storage.errors import StorageSetupError


@click.command(
    name="restore",
    epilog="""
\b
Examples:
  aether restore backups/monday --data-dir aether-data
  aether restore backups/monday.tar.zst --data-dir /var/lib/aether --force
  ssh host 'cat monday.tar' | aether restore - --data-dir aether-data
  aether restore --database postgresql://aether@db.example.com/aether
                                                  says what to run

\b
Afterwards clients see a new log: they forget the offsets that they know, and get the messages
behind their stored positions again. Tasks have new assignment numbers, so a worker that goes on
with an old assignment is refused. Revocations, locks and rules that came after the backup are
gone: make them again before you let clients in.
""",
)
@click.argument("backup", metavar="BACKUP|-", required=False)
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the data is to lie; no default.")
@click.option("--force", is_flag=True, help="Move the data that is there aside, into a directory within --data-dir.")
@click.option("--database", metavar="URL", help="postgresql://...: say what restores this database.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@settings_options
def command(
    backup: str | None,
    data_dir: str | None,
    force: bool,
    database: str | None,
    as_json: bool,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Put a backup into a data directory, all of it or nothing.

    The gateway must not run, and the directory must be empty (or see --force). Checksums are
    compared before anything is changed. An interrupted restore leaves no gateway's data behind that
    starts: run it again.
    """
    settings = load(config_file, {"gateway.data_dir": data_dir, "storage.database": database}, sets).settings
    if settings.storage.database is not None:
        raise exits.CliError(restore_commands(settings.storage), lines=True)
    if backup is None:
        raise click.UsageError("Name the backup: a directory, a file, or - for standard input.")
    if data_dir is None and config_file is None:
        raise click.UsageError("Name the data directory with --data-dir, or settings with --config.")
    if backup == "-" and sys.stdin is None:
        raise click.UsageError("Standard input is closed: send the backup there, or name it.")
    directory = Path(settings.gateway.data_dir)
    try:
        done = restore(backup, directory, force=force, stdin=sys.stdin.buffer if backup == "-" else None)
    except (BackupError, StorageSetupError) as error:
        raise exits.CliError(str(error), lines=True) from None
    except OSError as error:
        raise exits.CliError(f"{error.filename or directory}: {error.strerror or error}") from None
    if as_json:
        say_json(msgspec.json.encode(done.manifest).decode())
        return
    say(f"{directory} has the data of {moment_text(done.manifest.at_ms)}, put back in {done.seconds:.1f} s")
    if done.aside is not None:
        say(f"  before        {done.aside}; remove it when the gateway works")
    for number, text in enumerate(done.manifest.not_included):
        say(f"  {'' if number else 'not included':<14}{text}")
