"""`aether init`: makes secrets, certificates, settings, an administrator's token."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
import yaml

from aether_trio.cli import exits
from aether_trio.cli.certificates import MAX_NAME, KeyPair, make_authority, make_client, make_server
from aether_trio.cli.identities import ADMINISTRATOR
from aether_trio.cli.output import say
from aether_trio.config import Settings, SettingsError, load_settings
from aether_trio.model.identity import SEPARATOR
from aether_trio.services.credentials.checker import ANONYMOUS_NAME, parse_common_name
from aether_trio.services.tokens.keys import new_key_text, read_hmac_keys
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError

SETTINGS: Final = "aether.yaml"
_ADMIN_FILE: Final = "admin.token"
_KEY_BYTES: Final = 32
_HMAC_KEY_ID: Final = "1"
"""The id in deploy/kubernetes too: a token counts only under the id that its key had."""


class _Installation:
    """The files of an installation; existing ones are kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secrets = directory / "secrets"
        self.clients = directory / "clients"
        self.made: list[Path] = []
        self.kept: list[Path] = []

    def write(self, path: Path, make: Callable[[], bytes], *, secret: bool) -> bytes:
        """Write a file unless it is there; return what is in it."""
        if path.exists():
            self.kept.append(path)
            return path.read_bytes()
        content = make()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Complete, or not there: the content is never in a file that others may read.
        partial_file = path.with_name(f".{path.name}.new")
        partial_file.unlink(missing_ok=True)
        descriptor = os.open(partial_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        partial_file.rename(path)
        self.made.append(path)
        return content

    def pair(self, certificate: Path, key: Path, make: Callable[[], KeyPair]) -> KeyPair:
        """Write a certificate and its key unless both are there."""
        if certificate.exists() != key.exists():
            there, missing = (certificate, key) if certificate.exists() else (key, certificate)
            raise exits.CliError(f"{there} is there and {missing} is not; restore it, or remove both", exits.SETTINGS)
        made = make() if not key.exists() else None
        secret = self.write(key, lambda: made.key if made else b"", secret=True)
        return KeyPair(self.write(certificate, lambda: made.certificate if made else b"", secret=False), secret)


@click.command(
    name="init",
    epilog="""
\b
Examples:
  aether init                                            everything in ./aether
  aether init --dir /etc/aether --tls-san gateway.example.com --tls-san 192.0.2.7
  aether init --client-cert ag::prod::echo::1 --client-cert _anonymous
  aether serve --config aether/aether.yaml               with what was made
  aether tokens list --tls-ca aether/ca.pem --api-key "$(cat aether/secrets/admin.token)"

\b
What is made, in --dir:
  aether.yaml                  settings for `aether serve --config`
  ca.pem, server.pem           an authority of your own (10 years), the gateway's certificate (1 year)
  clients/NAME.pem, NAME.key   certificates of clients (1 year); :: in a name becomes a dot
  secrets/                     mode 0700, files 0600: keys of the certificates, the key under which API
                               tokens are stored, and the first administrator's token
""",
)
@click.option(
    "--dir", "directory", default="aether", show_default=True, type=click.Path(file_okay=False, path_type=Path),
    help="Where to put everything.",
)  # fmt: skip
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path),
    help="The gateway's data, into which the administrator's token is written.  [default: DIR/data]",
)  # fmt: skip
@click.option("--database", metavar="URL", help="postgresql://... that keeps everything, instead of --data-dir.")
@click.option(
    "--tls-san", "names", multiple=True, metavar="NAME|ADDRESS",
    help="A name or address by which clients reach the gateway, besides localhost. May be repeated.",
)  # fmt: skip
@click.option(
    "--client-cert", "clients", multiple=True, metavar="IDENTITY",
    help="Make a client's certificate for this identity, such as ag::prod::echo::1, or _anonymous, which is for "
    "encryption alone. May be repeated, also later.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True,
    help="Make all secrets, certificates and settings anew. Clients must then trust the new authority, and tokens "
    "that were made before are not valid any more.",
)  # fmt: skip
@click.option("--print", "prints", is_flag=True, help="Also print the administrator's token.")
def command(
    directory: Path,
    data_dir: Path | None,
    database: str | None,
    names: tuple[str, ...],
    clients: tuple[str, ...],
    force: bool,
    prints: bool,
) -> None:
    """Make secrets, certificates, settings and an administrator's token.

    What is there already is kept, so a second run changes nothing, and makes what is missing. Keep
    secrets/ from other users, and ca.key off the gateway's machine if you can: it makes
    certificates of clients.
    """
    for name in clients:
        _check_client(name)
    place = _Installation(directory.absolute())
    try:
        if force:
            _remove(place)
        token = _make_all(place, data_dir, database, names, clients)
    except* OSError as group:
        error = exits.first_of(group)
        raise exits.CliError(f"{error.filename or place.directory}: {error.strerror}", exits.SETTINGS) from None
    except* (StorageSetupError, StorageUnavailable, SettingsError) as group:
        raise exits.CliError(str(exits.first_of(group)), exits.SETTINGS, lines=True) from None
    for path in place.made:
        say(f"made  {_shown(path)}")
    if not place.made:
        say(f"everything is there already, in {_shown(place.directory)}; --force makes it anew")
    if prints:
        say(f"\nThe administrator's token:\n\n  {token}", lines=True)
    config, authority = _shown(place.directory / SETTINGS), _shown(place.directory / "ca.pem")
    secret = _shown(place.secrets / _ADMIN_FILE)
    say(f"\nStart the gateway:\n  aether serve --config {config}", lines=True)
    say(f'Administer it:\n  aether tokens list --tls-ca {authority} --api-key "$(cat {secret})"', lines=True)


def _check_client(name: str) -> None:
    if len(name) > MAX_NAME:
        raise click.BadParameter(f"{name!r} has more than {MAX_NAME} characters", param_hint="--client-cert")
    if name != ANONYMOUS_NAME and parse_common_name(name, "semi-strict") is None:
        raise click.BadParameter(
            f"{name!r} is no identity, such as ag::prod::echo::1, ga::prod or {ANONYMOUS_NAME}",
            param_hint="--client-cert",
        )


def _shown(path: Path) -> str:
    """Return a path as short as it may be written here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _remove(place: _Installation) -> None:
    for one in (place.secrets, place.clients):
        if one.is_dir():
            shutil.rmtree(one)
    for name in (SETTINGS, "ca.pem", "server.pem"):
        (place.directory / name).unlink(missing_ok=True)


def _make_all(
    place: _Installation, data_dir: Path | None, database: str | None, names: Sequence[str], clients: Sequence[str]
) -> str:
    """Make what is missing; return the administrator's token."""
    place.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    authority = place.pair(place.directory / "ca.pem", place.secrets / "ca.key", partial(make_authority, now))
    place.pair(
        place.directory / "server.pem", place.secrets / "server.key", partial(make_server, authority, names, now)
    )
    for name in clients:
        stem = name.replace(SEPARATOR, ".").replace("/", "_")
        place.pair(
            place.clients / f"{stem}.pem", place.clients / f"{stem}.key", partial(make_client, authority, name, now)
        )
    hmac_key = place.secrets / "token-hmac.key"
    place.write(hmac_key, lambda: new_key_text(secrets.token_bytes(_KEY_BYTES)).encode(), secret=True)
    document = _settings_text(place, data_dir, database, hmac_key)
    place.write(place.directory / SETTINGS, document.encode, secret=database is not None)
    settings = load_settings(place.directory / SETTINGS)

    def administrator() -> bytes:
        return trio.run(_make_administrator, settings).encode() + b"\n"

    return place.write(place.secrets / _ADMIN_FILE, administrator, secret=True).decode().strip()


def _settings_text(place: _Installation, data_dir: Path | None, database: str | None, hmac_key: Path) -> str:
    document: dict[str, dict[str, object]] = {
        "gateway": {"data_dir": str((data_dir or place.directory / "data").absolute())},
        "tls": {
            "cert": str(place.directory / "server.pem"),
            "key": str(place.secrets / "server.key"),
            "client_ca": str(place.directory / "ca.pem"),
        },
        "auth": {"token_hmac_keys": [{"id": _HMAC_KEY_ID, "file": str(hmac_key)}]},
    }
    if database is not None:
        document["storage"] = {"database": database}
    head = "# Made by `aether init`. `aether config default` explains every setting.\n"
    return head + yaml.safe_dump(document, sort_keys=False, width=200)


async def _make_administrator(settings: Settings) -> str:
    """Write the first administrator's token into the database; return its text."""
    from aether_trio.cli.offline_tokens import make_offline
    from aether_trio.gateway.offline import open_offline
    from aether_trio.wire.pb import aether_pb2 as pb

    wanted = pb.TokenCreateRequest(name="administrator", principal_type="user", created_by=ADMINISTRATOR)
    async with open_offline(settings) as access:
        _, text = await make_offline(access, read_hmac_keys(settings.auth), wanted)
    return text
