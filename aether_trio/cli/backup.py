"""`aether backup`: copies a gateway's databases as they were at one moment."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

import click
import msgspec

from aether_trio.cli import exits
from aether_trio.cli.options import load, settings_options
from aether_trio.cli.output import progress_line, say, say_json
from aether_trio.cli.postgres_backup import backup_commands
from aether_trio.config import Settings
from aether_trio.storage.backup import Backup, BackupError, back_up
from aether_trio.storage.errors import StorageSetupError
from aether_trio.version import __version__

MIB: Final = 1024 * 1024
_TLS_FILES: Final = ("cert", "key", "client_ca", "client_crl")


@click.command(
    name="backup",
    epilog="""
\b
Examples:
  aether backup backups/monday                    of ./aether-data, into a new directory
  aether backup backups/monday.tar.zst --config aether/aether.yaml
  aether backup - | ssh host 'cat > monday.tar'   one tar file on standard output
  aether restore backups/monday --data-dir aether-data
  aether backup --database postgresql://aether@db.example.com/aether
                                                  says what to run

\b
Not in a backup, and named at its end: the settings, and all files that they name (TLS, the keys of
API tokens); the key that signs the audit log, because a restored gateway begins a new tree.
""",
)
@click.argument("target", metavar="DIR|FILE|-", required=False)
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the data lies.  [default: ./aether-data]")
@click.option("--database", metavar="URL", help="postgresql://...: say what backs this database up.")
@click.option(
    "--temp-dir", type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="For -: where one database at a time is copied to.  [default: TMPDIR]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON (not with -).")
@settings_options
def command(
    target: str | None,
    data_dir: str | None,
    database: str | None,
    temp_dir: Path | None,
    as_json: bool,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Back a gateway's data up, while it runs or not.

    DIR is made, or is empty; FILE ends in .tar, .tar.gz or .tar.zst. All databases are copied as
    they were at one moment. Senders wait for some milliseconds at that moment, and not for the
    copy. Run it as the gateway's user. What is there under the name of the backup is whole and on
    the disk.
    """
    settings = load(config_file, {"gateway.data_dir": data_dir, "storage.database": database}, sets).settings
    if settings.storage.database is not None:
        raise exits.CliError(backup_commands(settings.storage), lines=True)
    if target is None:
        raise click.UsageError("Name a directory or a file for the backup, or - for standard output.")
    to_stdout = target == "-"
    shows = sys.stderr is not None and sys.stderr.isatty()
    if to_stdout and sys.stdout is None:
        raise click.UsageError("Standard output is closed: send it to a file or another program.")
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("A backup is not written to a terminal: send it to a file or another program.")
    left_out = not_included(settings, config_file)
    with _ends_on_signals():
        try:
            made = back_up(
                Path(settings.gateway.data_dir),
                target,
                made_by=f"aether-trio {__version__}",
                node=settings.gateway.node_name or "",
                not_included=left_out,
                progress=_show if shows else _show_nothing,
                stdout=sys.stdout.buffer if to_stdout else None,
                scratch=temp_dir,
            )
        except (BackupError, StorageSetupError) as error:
            raise exits.CliError(str(error), lines=True) from None
        except OSError as error:
            where = error.filename or ("standard output" if to_stdout else target)
            raise exits.CliError(f"{where}: {error.strerror or error}") from None
        finally:
            if shows:
                progress_line("")
    if as_json and not to_stdout:
        say_json(msgspec.json.encode(made.manifest).decode())
        return
    for line in _lines(made, target):
        say(line, err=to_stdout)


def not_included(settings: Settings, config_file: str | None) -> tuple[str, ...]:
    """Name what a backup of these settings leaves out."""
    found = [f"the settings, {Path(config_file).absolute()}" if config_file else "the settings (--config, environment)"]
    found += [f"tls.{leaf}, {path}" for leaf in _TLS_FILES if (path := getattr(settings.tls, leaf))]
    found += [f"the key {key.id} of API tokens, {key.file}" for key in settings.auth.token_hmac_keys]
    found += [f"the keys of {one.name}, {one.jwks_file}" for one in settings.auth.jwt.providers if one.jwks_file]
    signing_key = settings.audit.signing_key or "audit.key"
    found.append(f"the key that signs the audit log, {signing_key}: do not use it again after a restore")
    return tuple(found)


def _lines(made: Backup, target: str) -> Iterator[str]:
    manifest = made.manifest
    sizes = ", ".join(f"{entry.file} {_size(entry.size)}" for entry in manifest.databases)
    where = "standard output" if target == "-" else target
    yield f"{manifest.source} is backed up to {where}: {sizes}, in {made.seconds:.1f} s"
    yield f"  as of  {moment_text(manifest.at_ms)}"
    for number, text in enumerate(manifest.not_included):
        yield f"  {'' if number else 'not included':<14}{text}"


def moment_text(at_ms: int) -> str:
    """Return a moment in UTC, as 2026-11-29T08:00:00.123Z."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count < 1024 * MIB else f"{count / MIB / 1024:.2f} GiB"


def _show(file: str, copied: int, total: int) -> None:
    progress_line(f"{file}: {100 * copied // max(total, 1)} %")


def _show_nothing(file: str, copied: int, total: int) -> None:
    """Report nothing: there is no terminal."""


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that unfinished files are removed."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # SIGHUP is ignored under nohup.
    ends = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    before = {number: signal.signal(number, end) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
